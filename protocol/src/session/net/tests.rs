//! Connections on loopback: what strangers and silent services cannot hold up.

use std::io::{Read, Write};
use std::net::{TcpListener as Listener, TcpStream as Stream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

use super::*;
use crate::judge::dcap::{self, Anchor};
use crate::services::pccs::tests::real_td;
use crate::session::asking::Again;
use crate::session::message::Message;
use crate::session::roster::Entry;
use crate::session::tests::evidence_of;
use crate::{
    Attester, Authority, CollateralStore, Event, Identity, Pccs, Policy, Quote, Refusal, Role,
    SimPlatform, Trust, Verifier,
};

const JOB: [u8; 32] = [9; 32];
/// Long before that something hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const TURN: Duration = Duration::from_millis(20);

fn clock() -> u64 {
    1_800_000_000
}

fn config(role: Role, identity: Option<Identity>) -> Arc<Config> {
    let platform = SimPlatform::new(clock());
    let policy = Policy::same_as(platform.report());
    let verifier = Verifier { trust: Trust::Simulated, policy };
    let identity = identity.unwrap_or_else(|| Identity::new(&platform, clock()).expect("identity"));
    let config = Config::with_identity(role, Some(Arc::new(platform)), verifier, clock, identity);
    Arc::new(config.expect("config"))
}

/// A network that counts what it hears.
struct Host {
    net: Net,
    /// Messages by connection.
    heard: Vec<(LinkId, Message)>,
    ended: Vec<Over>,
}

impl Host {
    fn new(role: Role) -> Self {
        let net = Net::new(config(role, None)).expect("a network");
        Self { net, heard: Vec::new(), ended: Vec::new() }
    }

    fn listening() -> (Self, SocketAddr) {
        let mut host = Self::new(Role::ParameterServer(0));
        let address = host.net.listen("127.0.0.1:0".parse().expect("an address")).expect("listen");
        (host, address)
    }

    fn turn(&mut self) {
        self.net.poll(Some(TURN), &JOB).expect("poll");
        for id in self.net.ids() {
            let heard = &mut self.heard;
            self.net.drive(id, |session| {
                while let Some(event) = session.next_event()? {
                    if let Event::Message(message) = event {
                        heard.push((id, message));
                    }
                }
                Ok(())
            });
        }
        self.ended.extend(self.net.take_ended());
    }

    fn say(&mut self, id: LinkId, step: u64) {
        let mut message = Some(Message::Gradients { step, samples: 1, loss: 0.0, fresh: false });
        self.net.drive(id, |session| message.take().map_or(Ok(()), |said| session.send(&said)));
    }

    fn is_open(&mut self, id: LinkId) -> bool {
        self.net.session(id).is_some_and(|session| session.is_open())
    }
}

/// Lets both have turns until something is so.
#[track_caller]
fn until(a: &mut Host, b: &mut Host, mut is_so: impl FnMut(&mut Host, &mut Host) -> bool) {
    let start = Instant::now();
    while !is_so(a, b) {
        assert!(start.elapsed() < PATIENCE, "it hangs; ended: {:?}", b.ended);
        a.turn();
        b.turn();
    }
}

fn open(server: &mut Host, client: &mut Host, address: &str) -> LinkId {
    let id = client.net.connect(address).expect("connect");
    until(server, client, |_, client| client.is_open(id));
    id
}

fn steps(host: &Host) -> Vec<u64> {
    let step = |(_, message): &(LinkId, Message)| match message {
        Message::Gradients { step, .. } => Some(*step),
        _ => None,
    };
    host.heard.iter().filter_map(step).collect()
}

#[test]
fn a_name_is_looked_up_meanwhile_and_one_that_nobody_has_ends_the_connection() {
    let (mut server, address) = Host::listening();
    let mut client = Host::new(Role::Worker(0));
    let nowhere = client.net.connect("nobody.invalid:1").expect("a name");
    let name = format!("localhost:{}", address.port());
    open(&mut server, &mut client, &name);
    until(&mut server, &mut client, |_, client| !client.ended.is_empty());
    let over = &client.ended[0];
    assert!(over.id == nowhere && matches!(over.why, CloseReason::Io(_)), "{:?}", over.why);
    assert!(over.why.is_transient(), "it may come to be known");
}

#[test]
fn a_service_that_does_not_answer_is_asked_once_and_holds_up_nobody_else() {
    let silent = Listener::bind("127.0.0.1:0").expect("listen");
    let at = format!("https://localhost:{}", silent.local_addr().expect("address").port());
    let service = Pccs::new(&at, &Authority::Pinned([7; 32])).expect("a client");
    let store = Arc::new(CollateralStore::new(Vec::new()).with_service(service, None));
    let (quote, _, now) = real_td();
    let quote = Quote::parse(&quote).expect("a quote");
    let origin = dcap::origin(&quote, &Anchor::default(), now).expect("genuine");

    let (mut server, address) = Host::listening();
    let address = address.to_string();
    let mut client = Host::new(Role::Worker(0));
    let links: Vec<LinkId> = (0..3).map(|_| open(&mut server, &mut client, &address)).collect();
    until(&mut server, &mut client, |server, _| {
        server.net.ids().iter().all(|id| server.is_open(*id))
    });
    let admission = config(Role::Worker(0), None).own_admission(JOB).expect("evidence");
    let entry = Entry { number: 0, previous: [0; 32], admission };
    let guests = server.net.ids();
    for id in &guests[..2] {
        let question = Question::Collateral(Arc::clone(&store), origin);
        let session = server.net.session(*id).expect("a session");
        session.asking.wait(question, Again::Fellow(Box::new(entry.clone())));
        server.net.drive(*id, |_| Ok(()));
    }
    // The service has accepted, and says nothing.
    let (asked, _) = silent.accept().expect("a question");
    for (step, id) in links.iter().enumerate() {
        client.say(*id, step as u64);
    }
    until(&mut server, &mut client, |server, _| !server.heard.is_empty());
    for _ in 0..20 {
        server.turn();
    }
    assert_eq!(steps(&server), [2], "who waits for no answer is heard, and only he");
    silent.set_nonblocking(true).expect("listener");
    assert!(silent.accept().is_err(), "one question for one kind of platform");
    // The service goes away: who waited goes on with what there is, in order.
    drop((asked, silent));
    until(&mut server, &mut client, |server, _| server.heard.len() == 5);
    for id in &guests[..2] {
        let of_one: Vec<&Message> =
            server.heard.iter().filter(|(of, _)| of == id).map(|(_, message)| message).collect();
        assert!(
            matches!(of_one[..], [Message::Admitted(_), Message::Gradients { .. }]),
            "{of_one:?}"
        );
    }
}

/// A peer that shows evidence of somebody else's key.
fn thief() -> Net {
    let platform = SimPlatform::new(clock());
    let honest = Identity::new(&platform, clock()).expect("identity");
    let content = evidence_of(honest.certificate());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let identity = Identity::with_evidence(key, clock(), Some(&content)).expect("identity");
    Net::new(config(Role::Worker(1), Some(identity))).expect("a network")
}

/// Strangers of every kind: who say nothing, who drip, who talk rubbish, who show stolen evidence.
fn flood(address: SocketAddr, count: usize) {
    let mut idle = Vec::new();
    let mut dripping = Vec::new();
    let mut thief = thief();
    for number in 0..count {
        // One that is refused is as good.
        idle.extend(Stream::connect(address));
        dripping.extend(Stream::connect(address));
        for stream in &mut dripping {
            let _ = stream.write(&[22]);
        }
        if let Ok(mut garbage) = Stream::connect(address) {
            let _ = garbage.write_all(&[number as u8; 3000]);
            let _ = garbage.set_read_timeout(Some(Duration::from_millis(1)));
            let _ = garbage.read(&mut [0; 64]);
        }
        thief.connect(&address.to_string()).expect("connect");
        thief.poll(Some(Duration::ZERO), &JOB).expect("poll");
        for id in thief.ids() {
            thief.drive(id, |session| session.next_event().map(drop));
        }
        thief.take_ended();
    }
}

#[test]
fn strangers_of_every_kind_neither_end_a_conversation_nor_keep_anybody_out() {
    let (mut server, address) = Host::listening();
    let mut client = Host::new(Role::Worker(0));
    let first = open(&mut server, &mut client, &address.to_string());
    let strangers = thread::spawn(move || flood(address, 250));
    let (mut said, mut others) = (0, Vec::new());
    let start = Instant::now();
    while !strangers.is_finished() || others.is_empty() {
        assert!(start.elapsed() < PATIENCE, "it hangs; ended: {:?}", client.ended);
        // One that came before talks on, and others come in all the while, from the same address.
        client.say(first, said);
        said += 1;
        let id = client.net.connect(&address.to_string()).expect("connect");
        until(&mut server, &mut client, |server, client| {
            assert!(server.net.half_open().len() <= SHARE_MAX);
            client.is_open(id) || client.ended.iter().any(|over| over.id == id)
        });
        if client.is_open(id) {
            others.push(id);
        }
        if others.len() > 20 {
            let id = others.remove(0);
            client.net.drive(id, |session| Err(session.close(None)));
        }
    }
    strangers.join().expect("strangers");
    let kept_out =
        client.ended.iter().filter(|over| !matches!(over.why, CloseReason::ByUs)).count();
    assert_eq!(kept_out, 0, "{:?}", client.ended);
    until(&mut server, &mut client, |server, _| steps(server).len() as u64 == said);
    assert_eq!(steps(&server), (0..said).collect::<Vec<_>>());
    assert!(
        server.ended.iter().any(|over| matches!(&over.why, CloseReason::Rejected(_))),
        "thieves"
    );
}

/// A platform that has a quote when it is let.
struct Slow {
    platform: SimPlatform,
    gate: Mutex<Receiver<()>>,
}

impl Attester for Slow {
    fn quote(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        let gate = self.gate.lock().expect("one thread at a time");
        gate.recv().map_err(io::Error::other)?;
        self.platform.quote(report_data)
    }

    fn name(&self) -> &'static str {
        "slow"
    }
}

#[test]
fn a_quote_that_no_session_asked_for_holds_up_nobody() {
    let (open_gate, gate) = channel();
    let platform = SimPlatform::new(clock());
    let policy = Policy::same_as(platform.report());
    let verifier = Verifier { trust: Trust::Simulated, policy };
    let slow = Arc::new(Slow { platform, gate: Mutex::new(gate) });
    // For the certificate, and for the session that opens first.
    (0..2).for_each(|_| open_gate.send(()).expect("a platform"));
    let config = Config::new(Role::ParameterServer(0), slow, verifier, clock).expect("config");
    let net = Net::new(Arc::new(config)).expect("a network");
    let mut server = Host { net, heard: Vec::new(), ended: Vec::new() };
    let address = server.net.listen("127.0.0.1:0".parse().expect("an address")).expect("listen");
    let mut client = Host::new(Role::Worker(0));
    let id = open(&mut server, &mut client, &address.to_string());
    server.net.ask_quote([7; 64]);
    for step in 0..5 {
        client.say(id, step);
    }
    until(&mut server, &mut client, |server, _| steps(server).len() == 5);
    assert!(server.net.take_quote().is_none(), "the gate is shut");
    open_gate.send(()).expect("a platform");
    let mut made = None;
    until(&mut server, &mut client, |server, _| {
        made = made.take().or_else(|| server.net.take_quote());
        made.is_some()
    });
    let OwnQuote { report_data, made } = made.expect("a quote");
    assert_eq!(report_data, [7; 64]);
    let quote = made.expect("a quote");
    let bound = Quote::parse(&quote).expect("a quote").td().expect("a TD").report_data;
    assert_eq!(bound, [7; 64]);
}

/// A server that closes a socket with bytes that it did not read resets it: what it said before is heard all the same.
#[test]
fn why_a_peer_ends_is_heard_by_who_was_sending() {
    let (mut server, address) = Host::listening();
    let mut client = Host::new(Role::Worker(0));
    let id = open(&mut server, &mut client, &address.to_string());
    until(&mut server, &mut client, |server, _| {
        let ids = server.net.ids();
        ids.iter().any(|id| server.is_open(*id))
    });
    for step in 0..50 {
        client.say(id, step);
    }
    for id in server.net.ids() {
        server.net.drive(id, |session| Err(session.close(Some(Refusal::Stopped))));
    }
    assert_eq!(server.net.take_ended().len(), 1);
    // It notices while it sends, not while it reads.
    let start = Instant::now();
    while client.net.take_ended().pop().map(|over| client.ended.push(over)).is_none() {
        assert!(start.elapsed() < PATIENCE, "it hangs");
        client.say(id, 50);
    }
    let why = &client.ended[0].why;
    assert!(matches!(why, CloseReason::RefusedByPeer(Refusal::Stopped)), "{why:?}");
}
