//! `Witness`: a worker's part in receipts: it keeps what it is told, and notices what cannot be.

use crate::job::Job;
use crate::job::receipt::{Hash, Receipt, Share};
use crate::training::contradiction::{Contradiction, Kind};
use crate::training::ledger::Ledger;

/// What a worker knows of the rounds of its job.
#[derive(Clone, Debug)]
pub struct Witness {
    worker: u16,
    ledger: Ledger,
    /// What we have sent last, and to the round that comes next after those that we know, as long as it is open: a
    /// server that has us compute another step has still to say what became of that.
    sent: Vec<Sent>,
    /// The step that the first round began with to which this process sent.
    first: Option<u64>,
    /// The receipt that was told last on this connection.
    told: Option<Receipt>,
}

/// What was sent to a round.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// The step that the round began with.
    step: u64,
    share: Share,
    /// It is of the first round of this process, and nothing was carried over into it. What an earlier process sent,
    /// which had carried over what rounding left, has other values; the round may be of either.
    may_be_of_before: bool,
}

impl Sent {
    /// Whether a round has it.
    fn is(&self, share: Option<&Share>) -> bool {
        share.is_some_and(|share| *share == self.share || self.may_be_of_before)
    }
}

/// How the rounds of a job close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounds {
    /// With everybody, and to the same however often they are made.
    Equal,
    /// With everybody; a server that goes on from an earlier checkpoint makes others, as rounding leaves a rest.
    Whole,
    /// Also without who is late, so that others are made too.
    Open,
}

impl Rounds {
    /// Those of a job.
    pub fn of(job: &Job) -> Self {
        match (job.quorum, job.makes_equal_rounds()) {
            (Some(_), _) => Self::Open,
            (None, true) => Self::Equal,
            (None, false) => Self::Whole,
        }
    }
}

impl Witness {
    /// One that knows nothing yet.
    pub fn new(worker: u16) -> Self {
        let ledger = Ledger::of_worker(worker);
        Self { worker, ledger, sent: Vec::new(), first: None, told: None }
    }

    /// Whose it is.
    pub fn worker(&self) -> u16 {
        self.worker
    }

    /// Goes on with what was kept of the same job, unless more is known already.
    pub fn remember(&mut self, ledger: Ledger) {
        if self.ledger.end().0 == 0 && ledger.worker() == Some(self.worker) {
            self.ledger = ledger;
        }
    }

    /// What it was told so far.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// A connection is over: what comes next may be of before.
    pub fn disconnected(&mut self) {
        self.told = None;
    }

    /// We have sent this to the round that began with `step`.
    pub fn sent(&mut self, step: u64, share: Share) {
        let is_first = *self.first.get_or_insert(step) == step;
        let may_be_of_before = is_first && share.fresh && step > 0;
        let open = self.ledger.end().0;
        self.sent.retain(|sent| sent.step == open && sent.step != step);
        self.sent.push(Sent { step, share, may_be_of_before });
    }

    /// What the receipt that was told last says of us, and the step that its round began with.
    pub fn told_share(&self) -> Option<(u64, Share)> {
        let told = self.told.as_ref()?;
        Some((told.step - told.count, *told.share(self.worker)?))
    }

    /// We were left out, and were told so.
    pub fn left_out(&mut self) {
        self.sent.clear();
    }

    /// Takes a receipt.
    ///
    /// # Errors
    /// When it contradicts what was told or sent before, or how rounds of the job close.
    pub fn take(&mut self, receipt: Receipt, rounds: Rounds) -> Result<(), Box<Contradiction>> {
        let is_back = self.told.is_none() && rounds != Rounds::Equal;
        if is_back {
            self.go_back(&receipt);
        }
        if let Err(kind) = self.check(&receipt, rounds) {
            return Err(self.contradiction(kind, receipt));
        }
        if self.ledger.end().0 < receipt.step {
            self.ledger.push(&receipt);
        }
        self.told = Some(receipt);
        Ok(())
    }

    /// Compares the parameters that have come for `step` with its receipt; before the first step there is none.
    ///
    /// # Errors
    /// When they are others.
    pub fn check_parameters(&self, step: u64, hash: Hash) -> Result<(), Box<Contradiction>> {
        match &self.told {
            Some(told) if told.step == step && told.parameters != hash => {
                Err(self.contradiction(Kind::Parameters(hash), told.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Whether a receipt was told on this connection.
    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// Whether the receipt of `step` was told last on this connection; before the first step there is none.
    pub fn knows(&self, step: u64) -> bool {
        self.told.as_ref().map_or(0, |told| told.step) == step
    }

    /// A server that was started again goes on from its checkpoint: rounds since then are made again.
    fn go_back(&mut self, receipt: &Receipt) {
        let (step, first, end) = (receipt.step, receipt.step - receipt.count, self.ledger.end().0);
        let to = if self.ledger.head(step) == Some(receipt.head()) {
            step
        } else if self.ledger.head(first) == Some(receipt.previous) {
            first
        } else {
            first.saturating_sub(1)
        };
        if to < end {
            log::warn!(
                "ps0 makes the rounds from step {to} on again, of which we had been told until step {end}"
            );
            self.ledger.cut(to);
        }
    }

    fn check(&self, receipt: &Receipt, rounds: Rounds) -> Result<(), Kind> {
        let first = receipt.step - receipt.count;
        if let Some(known) = self.ledger.head(receipt.step) {
            return if known == receipt.head() { Ok(()) } else { Err(Kind::TwoHeads(known)) };
        }
        let (end, chain) = self.ledger.end();
        match self.ledger.head(first) {
            Some(known) if known != receipt.previous => return Err(Kind::TwoHeads(known)),
            // It follows from a round after which we know another, or ends within one that we know.
            _ if self.ledger.goes_on_after(first) || self.ledger.spans(receipt.step) => {
                return Err(Kind::TwoHeads(self.ledger.head(end).unwrap_or_default()));
            }
            _ => {}
        }
        let share = receipt.share(self.worker);
        if let Some(sent) = self.sent.iter().find(|sent| sent.step == first && !sent.is(share)) {
            return Err(Kind::Lacks(sent.share));
        }
        let chain = share.map_or(chain, |share| share.chain(&chain, receipt.step, receipt.count));
        let told = receipt.parts.get(usize::from(self.worker)).map(|part| part.chain);
        if first == end && told != Some(chain) {
            return Err(Kind::Chain(chain));
        }
        let mut absent = (0..).zip(&receipt.parts).filter(|(_, part)| part.share.is_none());
        match absent.next() {
            Some((worker, _)) if rounds != Rounds::Open && !receipt.is_of_before() => {
                Err(Kind::Without(worker))
            }
            _ => Ok(()),
        }
    }

    fn contradiction(&self, kind: Kind, told: Receipt) -> Box<Contradiction> {
        let last = self.ledger.last().cloned();
        Box::new(Contradiction { step: told.step, kind, told, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: Hash = [1; 32];

    fn share(worker: u8, round: u64) -> Share {
        Share { samples: 8, fresh: false, hash: [16 * worker + round as u8; 32] }
    }

    /// The receipt of the next round of one step, with these in.
    fn next(before: Option<&Receipt>, workers: [bool; 2]) -> Receipt {
        let step = before.map_or(0, |before| before.step);
        let shares = [0, 1].map(|worker| workers[usize::from(worker)].then(|| share(worker, step)));
        Receipt::next(before, JOB, step + 1, 1, [step as u8; 32], shares.into())
    }

    fn honest(rounds: usize) -> Vec<Receipt> {
        let mut made: Vec<Receipt> = Vec::new();
        (0..rounds).for_each(|_| made.push(next(made.last(), [true; 2])));
        made
    }

    /// Worker 1 that has taken part in these rounds.
    fn witness(receipts: &[Receipt]) -> Witness {
        let mut witness = Witness::new(1);
        for receipt in receipts {
            witness.sent(receipt.step - 1, share(1, receipt.step - 1));
            witness.take(receipt.clone(), Rounds::Equal).expect("honest");
        }
        witness
    }

    fn kind(result: Result<(), Box<Contradiction>>) -> Kind {
        result.expect_err("a lie").kind
    }

    #[test]
    fn two_heads_for_a_step_are_noticed_in_every_way_of_telling_them() {
        let receipts = honest(5);
        let mut other = receipts[4].clone();
        other.parameters[0] ^= 1;
        let known = Kind::TwoHeads(receipts[4].head());
        // At once, after a new connection, and by the receipt that follows from the other.
        assert_eq!(kind(witness(&receipts).take(other.clone(), Rounds::Equal)), known);
        let mut again = witness(&receipts);
        again.disconnected();
        assert_eq!(kind(again.take(other.clone(), Rounds::Equal)), known);
        assert_eq!(
            kind(witness(&receipts).take(next(Some(&other), [true; 2]), Rounds::Equal)),
            known
        );
        // A round that skips over one that we know.
        let skips = Receipt { count: 2, ..receipts[4].clone() };
        let end = Kind::TwoHeads(receipts[4].head());
        assert_eq!(kind(witness(&receipts).take(skips, Rounds::Equal)), end);
        // A round beside those that we know, longer than they are, from where they begin or from within.
        for from in [0, 2, 3] {
            let before = (from > 0).then(|| &receipts[from - 1]);
            let count = 6 - from as u64;
            let fork = Receipt::next(before, JOB, 6, count, [7; 32], vec![None, Some(share(1, 9))]);
            for rounds in [Rounds::Equal, Rounds::Whole, Rounds::Open] {
                assert_eq!(kind(witness(&receipts).take(fork.clone(), rounds)), end, "{from}");
            }
            let mut again = witness(&receipts);
            again.disconnected();
            assert_eq!(kind(again.take(fork, Rounds::Equal)), end, "{from}");
        }
        // The same again is no lie.
        let mut again = witness(&receipts);
        again.disconnected();
        receipts[2..]
            .iter()
            .for_each(|same| again.take(same.clone(), Rounds::Equal).expect("the same"));
    }

    #[test]
    fn a_contribution_that_is_dropped_changed_or_forgotten_later_is_noticed() {
        let receipts = honest(3);
        let ours = share(1, 3);
        let sent = || {
            let mut witness = witness(&receipts);
            witness.sent(3, ours);
            witness
        };
        let dropped = next(receipts.last(), [true, false]);
        assert_eq!(kind(sent().take(dropped.clone(), Rounds::Equal)), Kind::Lacks(ours));
        // Another step in between makes nobody forget.
        let mut again = sent();
        assert!(again.knows(3) && !again.knows(0));
        again.sent(0, share(1, 0));
        again.sent(1, share(1, 1));
        assert_eq!(kind(again.take(dropped.clone(), Rounds::Open)), Kind::Lacks(ours));
        let mut told = sent();
        told.left_out();
        told.take(dropped, Rounds::Open).expect("we were told");
        for change in [
            |share: &mut Share| share.hash[0] ^= 1,
            |share: &mut Share| share.samples += 1,
            |share: &mut Share| share.fresh = true,
        ] {
            let mut changed = ours;
            change(&mut changed);
            let shares = vec![Some(share(0, 3)), Some(changed)];
            let told = Receipt::next(receipts.last(), JOB, 4, 1, [3; 32], shares);
            assert_eq!(kind(sent().take(told, Rounds::Equal)), Kind::Lacks(ours));
        }
        let mut forgotten = next(receipts.last(), [true; 2]);
        forgotten.parts[1].chain[0] ^= 1;
        assert!(matches!(kind(sent().take(forgotten, Rounds::Equal)), Kind::Chain(_)));
        let short = Receipt { parts: Vec::new(), ..next(receipts.last(), [true; 2]) };
        assert_eq!(kind(sent().take(short, Rounds::Equal)), Kind::Lacks(ours));
    }

    #[test]
    fn what_a_process_before_sent_is_no_lie_and_what_this_one_sends_next_is_compared() {
        let receipts = honest(4);
        let fresh = |round| Share { fresh: true, hash: [99; 32], ..share(1, round) };
        let mut begun = Witness::new(1);
        begun.take(receipts[2].clone(), Rounds::Whole).expect("the last");
        begun.sent(3, fresh(3));
        assert_eq!(begun.told_share(), Some((2, share(1, 2))));
        // A lost connection, after which the same is sent again, makes no difference.
        for has_lost in [false, true] {
            let mut begun = begun.clone();
            if has_lost {
                begun.disconnected();
                begun.sent(3, fresh(3));
            }
            let left_out = next(receipts.get(2), [true, false]);
            assert_eq!(kind(begun.clone().take(left_out, Rounds::Open)), Kind::Lacks(fresh(3)));
            begun.take(receipts[3].clone(), Rounds::Whole).expect("of the process before");
            assert_ne!(begun.told_share(), Some((3, fresh(3))), "nothing of ours is carried over");
            begun.sent(4, fresh(4));
            let other = next(receipts.last(), [true; 2]);
            assert_eq!(kind(begun.take(other, Rounds::Whole)), Kind::Lacks(fresh(4)));
        }
        // What carries something over was made by this process.
        let mut begun = Witness::new(1);
        begun.sent(3, Share { fresh: false, ..fresh(3) });
        let found = kind(begun.take(receipts[3].clone(), Rounds::Whole));
        assert_eq!(found, Kind::Lacks(Share { fresh: false, ..fresh(3) }));
        // Before the first round there was no process.
        let mut new = Witness::new(1);
        new.sent(0, fresh(0));
        assert_eq!(kind(new.take(receipts[0].clone(), Rounds::Equal)), Kind::Lacks(fresh(0)));
    }

    #[test]
    fn a_round_without_a_fellow_is_noticed_where_everybody_takes_part() {
        let receipts = honest(2);
        let without = next(receipts.last(), [false, true]);
        let told = |told: &Receipt, rounds| witness(&receipts).take(told.clone(), rounds);
        for rounds in [Rounds::Equal, Rounds::Whole] {
            assert_eq!(kind(told(&without, rounds)), Kind::Without(0));
        }
        told(&without, Rounds::Open).expect("a quorum is enough");
        let late = Receipt::next(receipts.last(), JOB, 3, 1, [3; 32], vec![None, None]);
        assert_eq!(kind(told(&late, Rounds::Whole)), Kind::Without(0));
        // What a checkpoint of before receipts vouches for is nobody's.
        let of_before = Receipt::next(None, JOB, 7, 7, [3; 32], vec![None, None]);
        Witness::new(1).take(of_before, Rounds::Equal).expect("no round of ours");
    }

    #[test]
    fn other_parameters_than_the_receipts_are_noticed() {
        let receipts = honest(2);
        let witness = witness(&receipts);
        witness.check_parameters(2, [1; 32]).expect("those of the receipt");
        assert_eq!(kind(witness.check_parameters(2, [9; 32])), Kind::Parameters([9; 32]));
        assert!(witness.knows(2) && !witness.knows(0) && !witness.knows(1));
        assert!(Witness::new(1).knows(0), "before the first step there is no receipt");
    }

    #[test]
    fn who_was_away_or_whose_server_was_set_back_openly_goes_on() {
        let receipts = honest(6);
        // Away for two rounds: what came meanwhile is not known.
        let mut away = witness(&receipts[..3]);
        away.disconnected();
        away.take(receipts[5].clone(), Rounds::Equal).expect("a gap");
        away.take(next(receipts.last(), [true; 2]), Rounds::Equal).expect("the next");
        // A server that is started again makes also those that we were away for.
        away.disconnected();
        receipts[3..]
            .iter()
            .for_each(|same| away.take(same.clone(), Rounds::Equal).expect("unknown"));
        assert_eq!(away.ledger().end().0, 7);
        // A round with a quorum is made again with others, after a restart only.
        let mut back = witness(&receipts);
        let remade = next(Some(&receipts[3]), [false, true]);
        let known = Kind::TwoHeads(receipts[4].head());
        assert_eq!(kind(back.take(remade.clone(), Rounds::Open)), known, "not in one connection");
        back.disconnected();
        back.take(receipts[3].clone(), Rounds::Open).expect("from the checkpoint");
        back.sent(4, share(1, 4));
        back.take(remade.clone(), Rounds::Open).expect("made again");
        assert_eq!(back.ledger().end().0, 5);
        // From the very start, and several rounds ago.
        let anew = next(None, [true, false]);
        for told in [&anew, &next(Some(&anew), [true; 2])] {
            let mut back = witness(&receipts);
            back.disconnected();
            back.take(told.clone(), Rounds::Open).expect("made again");
            assert_eq!(back.ledger().end().0, told.step);
        }
        // Where every round is the same, it is a lie.
        let mut fixed = witness(&receipts);
        fixed.disconnected();
        fixed.take(receipts[3].clone(), Rounds::Equal).expect("from the checkpoint");
        assert_eq!(kind(fixed.take(remade, Rounds::Equal)), known);
    }
}
