//! `Link`: a session over a socket that tells of readiness once, at its edge.
//!
//! An edge that is not used up is lost: nobody tells a second time that a socket can be written. So a link
//! reads until the socket or the session has enough and remembers what it did not read, and it writes until
//! the socket takes no more. Whoever works on the session is asked again each time that everything was sent:
//! either it has nothing to say, or bytes wait for an edge that is still to come. Between these two no third
//! state exists in which only a timer could wake us.

use std::io::{self, Read, Write};
use std::time::Duration;

use crate::session::Session;
use crate::session::close::CloseReason;

/// Reads of one link before the others have their turn.
const READS_MAX: usize = 16;

/// Pieces of output of one link before the others have their turn: of 256 KiB, a few milliseconds at a network's
/// speed. Whoever takes a whole volume as fast as the machine sends would keep everybody else waiting.
const PIECES_MAX: usize = 64;

/// Bytes that are read at a time of what a peer said last.
const LAST_READ_LEN: usize = 1 << 16;

/// A session and its socket.
#[derive(Debug)]
pub struct Link<S> {
    socket: S,
    session: Session,
    readable: bool,
    /// Output may wait that no edge will tell of: the others had their turn first.
    interrupted: bool,
    eof: bool,
    ended: Option<CloseReason>,
}

impl<S: Read + Write> Link<S> {
    /// A session over a socket of which nothing is known yet.
    pub fn new(socket: S, session: Session) -> Self {
        Self { socket, session, readable: false, interrupted: false, eof: false, ended: None }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session, to ask and to tell it something.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// The socket.
    pub fn socket_mut(&mut self) -> &mut S {
        &mut self.socket
    }

    /// The socket told that there is something to read, or the end.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Whether the link is over.
    pub fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    /// The session and why it is over, if it is.
    pub fn into_ended(self) -> Option<(Session, CloseReason)> {
        let Self { session, ended, .. } = self;
        ended.map(|why| (session, why))
    }

    /// Whether there is something to read that the session has room for: no edge will tell of it again.
    pub fn wants_read(&self) -> bool {
        self.readable && !self.eof && self.ended.is_none() && self.session.wants_input()
    }

    /// Whether its work was interrupted for the sake of others, and has to be gone on with.
    pub fn wants_turn(&self) -> bool {
        self.interrupted && self.ended.is_none()
    }

    /// Gives the session what the socket has, up to a share that leaves others their turn.
    pub fn read(&mut self, input: &mut [u8]) {
        for _ in 0..READS_MAX {
            if !self.wants_read() {
                return;
            }
            match self.socket.read(input) {
                Ok(0) => self.eof = true,
                Ok(len) => {
                    if let Err(why) = self.session.receive(&input[..len]) {
                        self.end(why);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.broken(error),
            }
        }
    }

    /// Lets the session act on the time, and sends what it has to say about it.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.ended.is_some() {
            return;
        }
        match self.session.handle_timeout(now) {
            Ok(()) => self.flush(),
            Err(why) => self.end(why),
        }
    }

    /// Lets `work` act on the session and sends what it says. It is called again whenever all of that went
    /// out, so it may queue a piece at a time, and needs to say nothing of whether there is more. After some
    /// pieces it is the turn of others; see [`Link::wants_turn`].
    pub fn drive(&mut self, mut work: impl FnMut(&mut Session) -> Result<(), CloseReason>) {
        let mut pieces = 0;
        self.interrupted = false;
        while self.ended.is_none() {
            if pieces == PIECES_MAX {
                self.interrupted = true;
                return;
            }
            pieces += 1;
            if let Err(why) = work(&mut self.session) {
                self.end(why);
                break;
            }
            if !self.session.wants_output() {
                break;
            }
            self.flush();
            if self.session.wants_output() {
                break;
            }
        }
        if self.eof && self.ended.is_none() && !self.session.wants_output() {
            self.end(CloseReason::ByPeer);
        }
    }

    /// Sends until nothing is left or the socket takes no more.
    pub fn flush(&mut self) {
        match self.session.output(&mut self.socket) {
            Ok(()) => {}
            // Not connected yet: the handshake waits for the writable edge.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            Err(error) => self.broken(error),
        }
    }

    /// Ends the link whose socket failed. A peer that closed it while we were sending may have said why, and what it
    /// said is still there to be read: no more of it than a socket holds, and never more than a session takes.
    fn broken(&mut self, error: io::Error) {
        if self.ended.is_some() {
            return;
        }
        let mut input = vec![0; LAST_READ_LEN];
        for _ in 0..PIECES_MAX {
            match self.session.next_event() {
                Err(why) => return self.end(why),
                Ok(Some(_)) => continue,
                Ok(None) => {}
            }
            if !self.session.wants_input() {
                break;
            }
            match self.socket.read(&mut input) {
                Ok(len @ 1..) => {
                    if let Err(why) = self.session.receive(&input[..len]) {
                        return self.end(why);
                    }
                }
                _ => break,
            }
        }
        self.end(CloseReason::Io(error));
    }

    /// Ends the link; the last words (an alert, a refusal) are sent if the socket takes them.
    pub fn end(&mut self, why: CloseReason) {
        if self.ended.is_none() {
            let _ = self.session.output(&mut self.socket);
            self.ended = Some(why);
        }
    }
}
