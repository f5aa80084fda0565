//! Evidence anew: a session that stays open asks its peer for a fresh quote from time to time, over the same binding
//! with a new nonce, and shows one where it is asked. Our own quotes are made elsewhere than where others wait.

use std::time::Duration;

use super::{Peer, Session};
use crate::judge::question::{Answer, Question};
use crate::rejection::Rejection;
use crate::session::close::CloseReason;
use crate::session::config::nonce;
use crate::session::fresh::{Asked, Own, jittered};
use crate::session::message::{Message, State};

/// Shortest time for an answer: a peer that computes looks at its connection when its step is done, and what it pushes
/// then may take as long as a network likes.
const ANSWER_MIN: Duration = Duration::from_secs(120);

impl Session {
    /// How often the peer's evidence was accepted: once when the session opened, and each time that it was asked since.
    pub fn attested(&self) -> u64 {
        self.fresh.accepted
    }

    /// Whether fresh evidence that the peer was asked for is not accepted yet. Who is silent may compute, and may be
    /// listening all the while: what it has not been sent so far can wait.
    pub fn owes_evidence(&self) -> bool {
        self.fresh.asked.is_some()
    }

    /// Has our quotes made by who owns the session, elsewhere than where it waits: [`Session::take_question`] has what
    /// to ask, [`Session::answer`] takes the quote.
    pub(crate) fn defer_quotes(&mut self) {
        self.fresh.is_deferred = true;
    }

    /// Makes a quote, or asks for one, which [`Session::show_own`] shows.
    pub(super) fn quote_own(&mut self, report_data: [u8; 64]) -> Result<(), CloseReason> {
        // One at a time: a peer that asks without an end has one answer at work.
        if self.fresh.own.is_some() {
            return Err(CloseReason::NotAllowed(
                "a question for evidence before the last is answered",
            ));
        }
        let made = match self.fresh.is_deferred {
            true => None,
            false => Some(self.config.quote(&report_data).map_err(|error| error.to_string())),
        };
        self.fresh.own = Some(Own { report_data, is_taken: made.is_some(), made });
        self.show_own()
    }

    /// The question for our own quote, once.
    pub(super) fn own_question(&mut self) -> Option<Question> {
        let own = self.fresh.own.as_mut().filter(|own| !own.is_taken)?;
        own.is_taken = true;
        Some(Question::Quote(self.config.attester.clone(), own.report_data))
    }

    /// Takes our own quote; one for another question is none.
    pub(super) fn set_own(&mut self, answer: &Answer) {
        if let (Answer::Quote(of, made), Some(own)) = (answer, &mut self.fresh.own)
            && *of == own.report_data
        {
            own.made = Some(made.clone());
        }
    }

    /// Whether the first quote is still to come: before that nothing else is said or looked at.
    pub(super) fn lacks_own(&self) -> bool {
        self.fresh.own.is_some() && self.state == State::Evidence
    }

    /// Shows our quote, if it is there.
    pub(super) fn show_own(&mut self) -> Result<(), CloseReason> {
        let Some(own) = self.fresh.own.take_if(|own| own.made.is_some()) else { return Ok(()) };
        let made = own.made.unwrap_or_else(|| Err("no quote".into()));
        let quote = made.map_err(|why| CloseReason::NoEvidence(std::io::Error::other(why)))?;
        let collateral = self.config.collateral.clone();
        self.put(&match self.state {
            State::Open => Message::Attested { quote, collateral },
            _ => Message::Evidence { quote, collateral },
        })
    }

    /// The peer asks for fresh evidence.
    pub(super) fn handle_attest(&mut self, nonce: [u8; 32]) -> Result<(), CloseReason> {
        let report_data = self.report_data(true, Some(&nonce))?;
        self.quote_own(report_data)
    }

    /// The peer shows fresh evidence, which it may only where it was asked.
    pub(super) fn handle_attested(
        &mut self,
        quote: Vec<u8>,
        collateral: Vec<u8>,
    ) -> Result<(), CloseReason> {
        if quote.is_empty() {
            return Err(CloseReason::Rejected(Rejection::MissingEvidence));
        }
        self.handle_evidence(quote, collateral)
    }

    /// What the peer's evidence is bound to: since it was asked anew, the nonce of then.
    pub(super) fn asked_nonce(&self) -> Option<[u8; 32]> {
        self.fresh.asked.map(|asked| asked.nonce)
    }

    /// The peer's evidence is accepted.
    pub(super) fn accepted(&mut self, peer: Peer) {
        self.peer = Some(peer);
        self.fresh.accepted += 1;
        (self.fresh.asked, self.fresh.due) = (None, None);
    }

    /// When fresh evidence is to be asked for, or has to be here.
    pub(super) fn reattest_timeout(&self) -> Option<Duration> {
        let every = self.reattest_every()?;
        match self.fresh.asked {
            None => self.fresh.due,
            // While an answer is judged, the service that it waits for has limits of its own.
            Some(_) if self.is_asking() => None,
            Some(asked) => asked.heard.map(|heard| heard + every.max(ANSWER_MIN)),
        }
    }

    /// Asks the peer for fresh evidence when it is time; `now` and whether it was heard of since the last look.
    pub(super) fn reattest(&mut self, now: Duration, is_heard: bool) -> Result<(), CloseReason> {
        let Some(every) = self.reattest_every() else { return Ok(()) };
        if self.fresh.asked.is_none() && self.fresh.due.is_none() {
            self.fresh.due = Some(now + jittered(every)?);
        }
        if let Some(asked) = self.fresh.asked.as_mut().filter(|_| is_heard) {
            asked.heard.get_or_insert(now);
        }
        if self.reattest_timeout().is_none_or(|at| now < at) {
            return Ok(());
        }
        if self.fresh.asked.is_some() {
            return Err(self.end(CloseReason::Unattested));
        }
        let nonce = nonce().map_err(CloseReason::Io)?;
        self.fresh.asked = Some(Asked { nonce, heard: None });
        self.put(&Message::Attest { nonce })
    }

    /// How often, where the peer has evidence to show and the session is open.
    fn reattest_every(&self) -> Option<Duration> {
        let has_evidence = self.peer.as_ref().is_some_and(|peer| peer.verdict.is_some());
        self.config.reattest.filter(|_| self.is_open() && has_evidence)
    }
}

#[cfg(test)]
mod tests;
