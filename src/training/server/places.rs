//! Who holds which place: connections, joins, and a second process that wants a place.

use protocol::{CloseReason, Message, Refusal, Role, Session, hex};

use super::ParameterServer;
use super::link::{Challenge, Link, Place};
use crate::job::state::Member;
use crate::training::note::Note;

impl ParameterServer {
    /// Forgets a connection that is over.
    pub fn left(&mut self, id: usize) -> Option<Role> {
        // Who was told the end stays in the books, to be counted.
        if self.links.get(&id).is_some_and(|link| link.told_end) {
            return None;
        }
        let gone = self.links.remove(&id)?;
        let wants = |link: &Link| match &link.place {
            Place::Wanted(member) if link.worker == gone.worker => Some(member.clone()),
            _ => None,
        };
        let next = self.links.iter().find_map(|(id, link)| Some((*id, wants(link)?)));
        if let (Place::Held, Some((next, member))) = (gone.place, next) {
            self.take_place(next, member);
        }
        self.progress += 1;
        Some(Role::Worker(gone.worker))
    }

    pub(super) fn open(&mut self, id: usize, session: &mut Session) -> Result<(), CloseReason> {
        let worker = match session.peer().map(|peer| peer.role) {
            Some(Role::Worker(index)) if index < self.job.workers => index,
            // The model is not there yet.
            Some(Role::TrustedNode) => return Err(session.close(Some(Refusal::Later))),
            Some(other) => {
                let last = self.job.workers - 1;
                self.say(format!("{other}: the job has worker0 to worker{last}"));
                return Err(session.close(Some(Refusal::Role)));
            }
            None => return Err(session.close(Some(Refusal::Role))),
        };
        let admission = session.admission().filter(|who| !self.roster.is_full_for(who));
        let Some(admission) = admission.cloned().map(Box::new) else {
            return Err(session.close(Some(Refusal::Later)));
        };
        self.progress += 1;
        self.links.insert(id, Link::new(worker, Some(admission)));
        session.send(&Message::Job(self.job.encode()))
    }

    /// Judges whether the peer may follow who had the role before. Not when it connects: the roster may have nobody in
    /// the role yet, and somebody later.
    pub(super) fn check_return(&mut self, worker: u16, session: &Session) -> Result<(), Refusal> {
        let before = self.roster.last_of(Role::Worker(worker));
        if let Some(Err(why)) = before.map(|before| session.check_return(before)) {
            self.say(format!("worker{worker}: {why}"));
            return Err(Refusal::Evidence);
        }
        Ok(())
    }

    /// Judges a join; only then is anything said about the place.
    pub(super) fn join(&mut self, id: usize, member: Member) -> Result<(), Refusal> {
        let link = self.links.get(&id).ok_or(Refusal::Protocol)?;
        let worker = link.worker;
        if link.place != Place::None || !member.counts(self.job.classes.len()) {
            return Err(Refusal::Protocol);
        }
        let before = self.state.members[usize::from(worker)].as_ref();
        if let Some(before) = before.filter(|before| !member.is_as(before)) {
            let said = format!(
                "worker{worker}: other data than when the job began: {} samples, {}, and now {}, {}",
                before.samples,
                named(before.data),
                member.samples,
                named(member.data)
            );
            self.say(said);
            return Err(Refusal::Data);
        }
        // Where there is no checkpoint yet, the roster knows.
        let known = self.roster.data_of(Role::Worker(worker));
        if known.is_some() && known != member.data {
            let (known, now) = (named(known), named(member.data));
            self.say(format!(
                "worker{worker}: other data than in the roster: {known}, and now {now}"
            ));
            return Err(Refusal::Data);
        }
        let expected = self.job.batches(member.samples);
        let single = member.samples == 1 && self.job.needs_two();
        if member.samples == 0 || single || member.batches != expected {
            return Err(Refusal::Data);
        }
        self.admit(id, &member)?;
        let wanted = |link: &Link| link.worker == worker && matches!(link.place, Place::Wanted(_));
        match self.holder(worker) {
            None => self.take_place(id, member),
            Some(_) if self.links.values().any(wanted) => return Err(Refusal::Taken),
            Some(holder) => {
                self.say(format!("worker{worker}: a second process; is the first alive?"));
                if let Some(link) = self.links.get_mut(&holder) {
                    link.challenge = Challenge::Due;
                }
                if let Some(link) = self.links.get_mut(&id) {
                    link.place = Place::Wanted(member);
                }
            }
        }
        Ok(())
    }

    /// The roster has everybody who said what its data is.
    fn admit(&mut self, id: usize, member: &Member) -> Result<(), Refusal> {
        let admission = self.links.get_mut(&id).and_then(|link| link.admission.take());
        let mut admission = *admission.ok_or(Refusal::Protocol)?;
        admission.data = member.data;
        match self.roster.admit(admission) {
            true => Ok(()),
            false => Err(Refusal::Later),
        }
    }

    pub(super) fn take_place(&mut self, id: usize, member: Member) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let worker = link.worker;
        let index = usize::from(worker);
        let is_out = self.round.is_left_out(worker);
        let knows_nothing = self.is_new && self.state.step > 0;
        link.place = Place::Held;
        match is_out {
            true => link.end_sending(),
            false => link.begin_sending(),
        }
        link.skipped =
            self.job.quorum.is_some() && (is_out || knows_nothing || !self.counted_last[index]);
        if !is_out {
            self.tally.forget(worker);
            if link.is_blind {
                self.tally.take(worker, &[]);
            }
        }
        let (data, samples) = (member.data, member.samples);
        let before = self.state.members[index].replace(member);
        if self.state.members.iter().all(Option::is_some) {
            self.settle_steps();
            self.judge_classes();
        }
        let missing = self.missing().len();
        let all = self.job.workers;
        let here = usize::from(all) - missing;
        let detail = format!("{}; {here} of {all} are here", named(data));
        let returns = before.is_some();
        self.notes.push(Note::Joined { worker, returns, samples, detail });
    }

    /// Asks the holder of a place that another wants, and tells the other when the holder answers.
    pub(super) fn settle_place(
        &mut self,
        id: usize,
        session: &mut Session,
    ) -> Result<(), CloseReason> {
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        if link.place == Place::Lost {
            return Err(session.close(Some(Refusal::Taken)));
        }
        match link.challenge {
            Challenge::None => {}
            Challenge::Due => {
                link.challenge = Challenge::Asked(session.probe()?);
            }
            Challenge::Asked(number) if session.answered() >= number => {
                link.challenge = Challenge::None;
                let worker = link.worker;
                self.progress += 1;
                let wanted = |link: &&mut Link| {
                    link.worker == worker && matches!(link.place, Place::Wanted(_))
                };
                self.links.values_mut().filter(wanted).for_each(|link| link.place = Place::Lost);
            }
            Challenge::Asked(_) => {}
        }
        Ok(())
    }

    /// The connection that has a worker's place.
    pub(super) fn holder(&self, worker: u16) -> Option<usize> {
        let holds = |link: &Link| link.worker == worker && link.place == Place::Held;
        self.links.iter().find(|(_, link)| holds(link) && !link.told_end).map(|(id, _)| *id)
    }
}

/// Data as the log names it.
fn named(data: Option<[u8; 32]>) -> String {
    data.map_or("of unknown digest".into(), |data| format!("digest {}...", hex(&data[..6])))
}
