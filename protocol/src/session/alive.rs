//! Signs of life: how a session that has nothing to say is told from one whose other end is gone.

use std::io;
use std::time::Duration;

use rustls::Connection;

use super::Session;
use crate::session::close::{CloseReason, OPEN_TIMEOUT, SILENCE_MAX};
use crate::session::message::{Message, State};

/// A server that said nothing else for so long says that it is alive. Well below [`SILENCE_MAX`], so that one
/// that writes a checkpoint to a slow disk meanwhile is not taken for dead.
const ALIVE_EVERY: Duration = Duration::from_secs(10);

impl Session {
    /// When [`Session::handle_timeout`] must be called.
    pub fn timeout(&self) -> Option<Duration> {
        match (self.state, &self.tls) {
            (State::Closed, _) => None,
            (State::Open, side) => {
                let alive = match side {
                    Connection::Server(_) => self.said + ALIVE_EVERY,
                    Connection::Client(_) => self.heard + SILENCE_MAX,
                };
                Some(self.reattest_timeout().map_or(alive, |at| at.min(alive)))
            }
            _ => Some(self.deadline),
        }
    }

    /// Takes note of the time, after all input that came before it: says that we are alive if nothing else
    /// was said for a while, and ends a session that did not open in time or whose server fell silent.
    ///
    /// # Errors
    /// [`CloseReason::Timeout`] or [`CloseReason::Silent`].
    pub fn handle_timeout(&mut self, now: Duration) -> Result<(), CloseReason> {
        let is_heard = std::mem::take(&mut self.has_heard);
        if is_heard {
            self.heard = now;
        }
        self.reattest(now, is_heard)?;
        if std::mem::take(&mut self.has_said) {
            self.said = now;
        }
        if self.timeout().is_none_or(|at| now < at) {
            return Ok(());
        }
        match (self.state, &self.tls) {
            (State::Open, Connection::Server(_)) if now < self.said + ALIVE_EVERY => Ok(()),
            (State::Open, Connection::Client(_)) if now < self.heard + SILENCE_MAX => Ok(()),
            (State::Open, Connection::Server(_)) => {
                self.said = now;
                // Bytes that wait to be sent are a sign of life of their own.
                match self.wants_output() {
                    true => Ok(()),
                    false => self.put(&Message::Alive { number: self.probes }),
                }
            }
            (State::Open, Connection::Client(_)) => Err(self.end(CloseReason::Silent)),
            _ if self.lacks_own() => {
                let what = format!("this platform made none within {} s", OPEN_TIMEOUT.as_secs());
                Err(self
                    .end(CloseReason::NoEvidence(io::Error::new(io::ErrorKind::TimedOut, what))))
            }
            _ if self.is_asking() => Err(self.end(CloseReason::Unanswered)),
            _ => Err(self.end(CloseReason::Timeout)),
        }
    }

    /// Asks a client for a sign of life; it answers as soon as it looks at its connection and everything that
    /// it said before is out. Returns the number of the question.
    ///
    /// # Errors
    /// When the session is over.
    pub fn probe(&mut self) -> Result<u64, CloseReason> {
        self.probes += 1;
        self.owed = Some(self.probes);
        self.say_owed().map(|()| self.probes)
    }

    /// The last question that the client answered.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Says what is owed. Never behind other bytes: a peer that asks and does not read makes no queue grow.
    pub(super) fn say_owed(&mut self) -> Result<(), CloseReason> {
        let ready = self.is_open() && !self.wants_output();
        match self.owed.take_if(|_| ready) {
            Some(number) => self.put(&Message::Alive { number }),
            None => Ok(()),
        }
    }
}
