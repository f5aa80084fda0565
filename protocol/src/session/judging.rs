//! How a session judges evidence: at once by what is at hand, else again when a question is answered.

use std::time::Duration;

use rustls::Connection;

use super::{Claimed, Peer, Session};
use crate::identity::binding::{Binding, EXPORTER_LABEL};
use crate::judge::dcap::Collateral;
use crate::judge::question::{Answer, Question};
use crate::judge::verify::{Judged, Shown};
use crate::rejection::Rejection;
use crate::role::{Role, RoleKind};
use crate::session::asking::Again;
use crate::session::close::CloseReason;
use crate::session::config::Config;
use crate::session::message::{Message, State};
use crate::session::roster::{Admission, Entry};

/// Whether a role is part of a job: such ones judge others by one policy.
fn is_participant(role: Role) -> bool {
    matches!(role.kind(), RoleKind::ParameterServer | RoleKind::Worker)
}

/// How long the answer of a service may take on top of the time to open: a few requests, each with its own limit,
/// behind those of others.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

impl Session {
    /// What the session wants to know from a service. Its owner has it asked, elsewhere than where it waits, and
    /// brings the answer to [`Session::answer`].
    pub(crate) fn take_question(&mut self) -> Option<Question> {
        self.asking.take_question().or_else(|| self.own_question())
    }

    /// The answer; [`Session::next_event`] goes on with it.
    pub(crate) fn answer(&mut self, answer: &Answer) {
        self.set_own(answer);
        self.asking.set_answer(answer);
    }

    /// Whether the session looks at nothing before an answer.
    pub fn is_asking(&self) -> bool {
        self.asking.is_waiting()
    }

    /// Judges whom the server says it admitted to this job, as if it had come to us. Where a service has to be
    /// asked first it is `false`, and the message of this entry comes again with the answer, before any other.
    ///
    /// # Errors
    /// The session is over then.
    pub fn check_admission(&mut self, entry: &Entry) -> Result<bool, CloseReason> {
        let admission = &entry.admission;
        let refuse = |why| CloseReason::Fellow(admission.role, why);
        if admission.job != self.job {
            return Err(self.end(refuse(Rejection::ReportData)));
        }
        let policy = &self.config.verifier.policy;
        let checked = policy
            .check_policy(admission.role, &admission.policies[0])
            .and_then(|()| policy.check_key(admission.role, &admission.keys[0]));
        if let Err(why) = checked {
            return Err(self.end(refuse(why)));
        }
        let now = (self.config.clock)();
        let answer = self.asking.take_answer();
        let judged = admission.judge(&self.config.verifier, answer, now);
        match self.config.verifier.check_clock(now).and(judged) {
            Ok(Judged::Accepted(_, question)) => {
                self.asking.mention(question);
                Ok(true)
            }
            Ok(Judged::Asks(question)) => {
                self.asking.wait(question, Again::Fellow(Box::new(entry.clone())));
                Ok(false)
            }
            Err(why) => Err(self.end(refuse(why))),
        }
    }

    /// Goes on with what waited for an answer. Gives the message that is to be looked at again, if it is one.
    pub(super) fn judge_again(&mut self) -> Result<Option<Message>, CloseReason> {
        match self.asking.answered() {
            None => Ok(None),
            Some(Again::Fellow(entry)) => Ok(Some(Message::Admitted(entry))),
            Some(Again::Evidence { quote, collateral }) => {
                self.handle_evidence(quote, collateral).map(|()| None).map_err(|why| self.end(why))
            }
        }
    }

    pub(super) fn handle_evidence(
        &mut self,
        quote: Vec<u8>,
        collateral: Vec<u8>,
    ) -> Result<(), CloseReason> {
        let report_data = self.report_data(false, self.asked_nonce().as_ref())?;
        let Some(Claimed { role, key, policy: theirs, .. }) = self.claimed else {
            return Err(CloseReason::NotAllowed("evidence"));
        };
        let now = (self.config.clock)();
        let policy = &self.config.verifier.policy;
        policy.check_key(role, &key).map_err(CloseReason::Rejected)?;
        if quote.is_empty() {
            if !policy.vouches(Some(role), &key) {
                return Err(CloseReason::Rejected(Rejection::MissingEvidence));
            }
            self.accepted(Peer { role, verdict: None, key });
            self.state = State::Open;
            return Ok(());
        }
        if is_participant(role) && is_participant(self.config.role) {
            policy.check_policy(role, &theirs).map_err(CloseReason::Rejected)?;
        }
        // A bundle that is none is as good as none.
        let theirs = Collateral::parse(&collateral).ok();
        let shown = Shown {
            bytes: &quote,
            report_data: &report_data,
            role: Some(role),
            at: now,
            collateral: theirs.as_ref(),
        };
        let answer = self.asking.take_answer();
        let judged = self.config.verifier.judge(&shown, answer, now);
        let judged = self.config.verifier.check_clock(now).and(judged);
        match judged.map_err(CloseReason::Rejected)? {
            Judged::Asks(question) => {
                self.deadline += ANSWER_WAIT;
                self.asking.wait(question, Again::Evidence { quote, collateral });
            }
            Judged::Accepted(verdict, question) => {
                self.asking.mention(question);
                self.accepted(Peer { role, verdict: Some(*verdict), key });
                if self.state != State::Open {
                    self.admission = self.admitted(quote)?;
                    self.state = State::Open;
                }
            }
        }
        Ok(())
    }

    /// What a server's roster says of this peer.
    fn admitted(&self, quote: Vec<u8>) -> Result<Option<Admission>, CloseReason> {
        let (Connection::Server(_), Some(Claimed { role, nonce, key, policy })) =
            (&self.tls, self.claimed)
        else {
            return Ok(None);
        };
        Ok(Some(Admission {
            role,
            server: self.config.role,
            time: (self.config.clock)(),
            keys: [key, self.config.identity.spki_hash],
            nonces: [nonce, self.nonce],
            exporter: self.exporter()?,
            job: self.job,
            policies: [policy, self.config.policy],
            data: None,
            quote,
        }))
    }

    fn exporter(&self) -> Result<[u8; 32], CloseReason> {
        self.tls.export_keying_material([0; 32], EXPORTER_LABEL, None).map_err(CloseReason::Tls)
    }

    /// The report data of our own evidence, or what the peer's must be; asked for anew, with the verifier's nonce of
    /// then.
    pub(super) fn report_data(
        &self,
        own: bool,
        anew: Option<&[u8; 32]>,
    ) -> Result<[u8; 64], CloseReason> {
        let Some(Claimed { role, nonce, key, policy }) = &self.claimed else {
            return Err(CloseReason::NotAllowed("evidence"));
        };
        let exporter = self.exporter()?;
        let is_client = matches!(self.tls, Connection::Client(_));
        let Config { identity, policy: own_policy, role: own_role, .. } = &*self.config;
        let ours = (*own_role, &identity.spki_hash, &self.nonce, own_policy);
        let theirs = (*role, key, nonce, policy);
        let (prover, verifier) = if own { (ours, theirs) } else { (theirs, ours) };
        let binding = Binding {
            prover: prover.0,
            verifier: verifier.0,
            from_client: own == is_client,
            keys: [prover.1, verifier.1],
            nonces: [prover.2, anew.unwrap_or(verifier.2)],
            exporter: &exporter,
            job: &self.job,
            policies: [prover.3, verifier.3],
        };
        Ok(binding.report_data())
    }
}
