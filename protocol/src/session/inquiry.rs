//! `Inquiries`: what would block (a service that is asked about evidence, a name that is looked up) runs on threads, a
//! few at a time; the answers wake the poll.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use mio::Waker;

use crate::judge::question::{Answer, Question};

/// Most threads at a time. One that waits for a service that never answers leaves the others theirs.
const RUNNING_MAX: usize = 4;
/// Most threads that make quotes of our own: a platform makes one after the other, and its kernel's interface is one.
const QUOTING_MAX: usize = 1;
/// What these threads need of a stack: TLS, and documents of a few hundred KiB on the heap.
const STACK_LEN: usize = 512 << 10;

/// What is to be found out.
#[derive(Debug)]
pub(super) enum Subject {
    /// Something about evidence.
    Evidence(Question),
    /// The addresses of `host:port`.
    Name(String),
}

/// What was found out.
#[derive(Debug)]
pub(super) enum Reply {
    Evidence(Answer),
    Name(io::Result<Vec<SocketAddr>>),
}

/// Everything that is being found out, and for whom.
pub(super) struct Inquiries {
    waker: Arc<Waker>,
    sender: Sender<Found>,
    receiver: Receiver<Found>,
    /// In the order in which they came; those that run are the first.
    open: Vec<Inquiry>,
    next: u64,
}

/// A reply to the inquiry of a number.
type Found = (u64, Reply);

struct Inquiry {
    number: u64,
    subject: Arc<Subject>,
    waiting: Vec<usize>,
    is_running: bool,
}

impl Inquiries {
    /// None yet.
    pub(super) fn new(waker: Waker) -> Self {
        let (sender, receiver) = mpsc::channel();
        Self { waker: Arc::new(waker), sender, receiver, open: Vec::new(), next: 0 }
    }

    /// Finds something out for `who`. What is being found out already is not asked a second time.
    pub(super) fn ask(&mut self, who: usize, subject: Subject) {
        match self.open.iter_mut().find(|open| is_same(&open.subject, &subject)) {
            Some(open) => open.waiting.push(who),
            None => {
                let (number, subject) = (self.next, Arc::new(subject));
                let waiting = vec![who];
                self.open.push(Inquiry { number, subject, waiting, is_running: false });
                self.next += 1;
            }
        }
        self.start();
    }

    /// Nobody has to answer `who` any more.
    pub(super) fn forget(&mut self, who: usize) {
        for open in &mut self.open {
            open.waiting.retain(|waiting| *waiting != who);
        }
        self.open.retain(|open| open.is_running || !open.waiting.is_empty());
    }

    /// The next thing that was found out, and for whom.
    pub(super) fn next_reply(&mut self) -> Option<(Vec<usize>, Reply)> {
        let (number, reply) = self.receiver.try_recv().ok()?;
        let at = self.open.iter().position(|open| open.number == number)?;
        let inquiry = self.open.remove(at);
        self.start();
        Some((inquiry.waiting, reply))
    }

    fn start(&mut self) {
        for (is_own, most) in [(true, QUOTING_MAX), (false, RUNNING_MAX)] {
            self.start_some(is_own, most);
        }
    }

    fn start_some(&mut self, is_own: bool, most: usize) {
        let mut of_kind: Vec<&mut Inquiry> =
            self.open.iter_mut().filter(|open| open.subject.is_own() == is_own).collect();
        let running = of_kind.iter().filter(|open| open.is_running).count();
        let free = most.saturating_sub(running);
        for open in of_kind.iter_mut().filter(|open| !open.is_running).take(free) {
            open.is_running = true;
            let (number, sender) = (open.number, self.sender.clone());
            let (subject, waker) = (Arc::clone(&open.subject), Arc::clone(&self.waker));
            let thread = thread::Builder::new().name("inquiry".into()).stack_size(STACK_LEN);
            let answer = move || {
                // The other end outlives every inquiry, or nobody wants to know any more.
                let _ = sender.send((number, subject.find_out()));
                let _ = waker.wake();
            };
            if let Err(error) = thread.spawn(answer) {
                log::warn!("no thread to ask a service on: {error}");
                let _ = self.sender.send((number, open.subject.unasked(&error)));
                let _ = self.waker.wake();
            }
        }
    }
}

impl Subject {
    fn is_own(&self) -> bool {
        matches!(self, Self::Evidence(question) if question.is_own())
    }

    /// Blocks.
    fn find_out(&self) -> Reply {
        match self {
            Self::Evidence(question) => Reply::Evidence(question.ask()),
            Self::Name(name) => Reply::Name(name.to_socket_addrs().map(Iterator::collect)),
        }
    }

    fn unasked(&self, why: &io::Error) -> Reply {
        match self {
            Self::Evidence(question) => Reply::Evidence(question.unasked(&why.to_string())),
            Self::Name(_) => Reply::Name(Err(io::Error::new(why.kind(), why.to_string()))),
        }
    }
}

/// Whether one answer serves both.
fn is_same(one: &Subject, other: &Subject) -> bool {
    match (one, other) {
        (Subject::Evidence(one), Subject::Evidence(other)) => one.is_same(other),
        _ => false,
    }
}
