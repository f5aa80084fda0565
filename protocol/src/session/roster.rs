//! Everybody whom a parameter server has admitted, as a chain that can only grow.
//!
//! An entry holds the evidence itself and all that it was bound to, so who receives it need not believe
//! the server: a worker judges its fellows by its own policy, an auditor does the same afterwards.

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::evidence::vtpm::EVIDENCE_LEN_MAX;
use crate::identity::binding::Binding;
use crate::judge::question::Answer;
use crate::judge::verify::{Judged, Shown, Verdict, Verifier};
use crate::rejection::Rejection;
use crate::role::Role;

/// Most entries: processes of a job that were admitted, each once. Each has a quote of some 8 KiB, and all are in
/// memory.
pub const ROSTER_MAX: usize = 4096;

/// A peer that was verified, with its evidence and what this was bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// What it was admitted as.
    pub role: Role,
    /// Who admitted it.
    pub server: Role,
    /// When, in seconds since 1970 by the server's clock.
    pub time: u64,
    /// SHA-256 of both SubjectPublicKeyInfos: the peer's, the server's.
    pub keys: [[u8; 32]; 2],
    /// Both nonces: the peer's, the server's.
    pub nonces: [[u8; 32]; 2],
    /// TLS exporter of their connection; no key is derived from it.
    pub exporter: [u8; 32],
    /// Digest of the job.
    pub job: [u8; 32],
    /// Digests of both policies: the peer's, the server's.
    pub policies: [[u8; 32]; 2],
    /// Root of the Merkle tree over a worker's records, as it said when it joined; evidence does not bind it.
    pub data: Option<[u8; 32]>,
    /// The peer's fresh quote.
    pub quote: Vec<u8>,
}

/// An admission in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Entries before it.
    pub number: u64,
    /// Digest of the entry before it, zeros for the first.
    pub previous: [u8; 32],
    /// Who was admitted.
    pub admission: Admission,
}

/// The chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    entries: Vec<Entry>,
    head: [u8; 32],
}

impl Admission {
    /// Judges the evidence as if it had been shown to us, at `now` in seconds since 1970. Blocks while a service is
    /// asked.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub fn verify(&self, verifier: &Verifier, now: u64) -> Result<Verdict, Rejection> {
        verifier.policy.check_key(self.role, &self.keys[0])?;
        verifier.verify_shown(&self.shown(&self.report_data()), now)
    }

    /// The same without a wait: what a service has to be asked is a question.
    pub(super) fn judge(
        &self,
        verifier: &Verifier,
        answer: Option<Answer>,
        now: u64,
    ) -> Result<Judged, Rejection> {
        verifier.judge(&self.shown(&self.report_data()), answer, now)
    }

    /// The evidence as it was shown then.
    fn shown<'a>(&'a self, report_data: &'a [u8; 64]) -> Shown<'a> {
        let (role, at) = (Some(self.role), self.time);
        Shown { bytes: &self.quote, report_data, role, at, collateral: None }
    }

    fn report_data(&self) -> [u8; 64] {
        let binding = Binding {
            prover: self.role,
            verifier: self.server,
            from_client: true,
            keys: [&self.keys[0], &self.keys[1]],
            nonces: [&self.nonces[0], &self.nonces[1]],
            exporter: &self.exporter,
            job: &self.job,
            policies: [&self.policies[0], &self.policies[1]],
        };
        binding.report_data()
    }
}

impl Entry {
    /// SHA-256 over every field; only the last has no fixed length. An entry without data has the digest that it had
    /// before entries knew of data, so that chains of then go on.
    pub fn digest(&self) -> [u8; 32] {
        let Admission { role, server, time, keys, nonces, exporter, job, policies, data, quote } =
            &self.admission;
        let mut context = Context::new(&SHA256);
        context.update(if data.is_some() { b"hfl-roster-v3" } else { b"hfl-roster-v2" });
        context.update(&self.number.to_le_bytes());
        context.update(&self.previous);
        context.update(&role.encode());
        context.update(&server.encode());
        context.update(&time.to_le_bytes());
        for part in keys.iter().chain(nonces).chain([exporter, job]).chain(policies) {
            context.update(part);
        }
        data.iter().for_each(|data| context.update(data));
        context.update(quote);
        context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

impl Roster {
    /// Everybody so far.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Digest of the last entry: it stands for the whole chain.
    pub fn head(&self) -> &[u8; 32] {
        &self.head
    }

    /// The last process that was admitted in a role.
    pub fn last_of(&self, role: Role) -> Option<&Admission> {
        let of_role = self.entries.iter().rev().find(|entry| entry.admission.role == role);
        of_role.map(|entry| &entry.admission)
    }

    /// What the last process in a role said that its data is.
    pub fn data_of(&self, role: Role) -> Option<[u8; 32]> {
        let of_role = self.entries.iter().rev().filter(|entry| entry.admission.role == role);
        of_role.map(|entry| entry.admission.data).find(Option::is_some).flatten()
    }

    /// Whether there is no room for who was admitted.
    pub fn is_full_for(&self, admission: &Admission) -> bool {
        self.entries.len() >= ROSTER_MAX && !self.knows(admission)
    }

    /// Whether this very process was admitted before.
    fn knows(&self, admission: &Admission) -> bool {
        let who = |of: &Admission| (of.role, of.keys[0]);
        self.entries.iter().any(|entry| who(&entry.admission) == who(admission))
    }

    /// Adds who was admitted, unless this very process was before. Returns whether it is in the chain.
    pub fn admit(&mut self, admission: Admission) -> bool {
        if self.knows(&admission) {
            return true;
        }
        let number = self.entries.len() as u64;
        self.extend(Entry { number, previous: self.head, admission })
    }

    /// Adds the next entry of somebody else's chain; `false` when it is not that, or too long.
    pub fn extend(&mut self, entry: Entry) -> bool {
        let follows = entry.number == self.entries.len() as u64 && entry.previous == self.head;
        let fits =
            self.entries.len() < ROSTER_MAX && entry.admission.quote.len() <= EVIDENCE_LEN_MAX;
        if follows && fits {
            self.head = entry.digest();
            self.entries.push(entry);
        }
        follows && fits
    }

    /// Whether this entry is already there, as it is.
    pub fn has(&self, entry: &Entry) -> bool {
        let known = usize::try_from(entry.number).ok().and_then(|at| self.entries.get(at));
        known == Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attester, Policy, SimPlatform, Trust};

    const NOW: u64 = 1_800_000_000;

    fn admission(role: Role, image: &str) -> Admission {
        let mut admission = Admission {
            role,
            server: Role::ParameterServer(0),
            time: NOW,
            keys: [[role.encode()[2]; 32], [7; 32]],
            nonces: [[1; 32], [2; 32]],
            exporter: [3; 32],
            job: [4; 32],
            policies: [[5; 32], [6; 32]],
            data: None,
            quote: Vec::new(),
        };
        let binding = Binding {
            prover: role,
            verifier: admission.server,
            from_client: true,
            keys: [&admission.keys[0], &admission.keys[1]],
            nonces: [&admission.nonces[0], &admission.nonces[1]],
            exporter: &admission.exporter,
            job: &admission.job,
            policies: [&admission.policies[0], &admission.policies[1]],
        };
        let platform = SimPlatform::with_td(NOW, image, false);
        admission.quote = platform.quote(&binding.report_data()).expect("a quote");
        admission
    }

    #[test]
    fn a_chain_grows_and_nothing_else() {
        let mut ours = Roster::default();
        for index in 0..3 {
            assert!(ours.admit(admission(Role::Worker(index), "hfl")));
        }
        assert!(ours.admit(admission(Role::Worker(1), "hfl")), "the same process again");
        assert_eq!(ours.entries().len(), 3);
        let mut theirs = Roster::default();
        for entry in ours.entries() {
            assert!(!theirs.has(entry));
            assert!(theirs.extend(entry.clone()));
            assert!(theirs.has(entry) && !theirs.extend(entry.clone()));
        }
        assert_eq!(theirs, ours);
        // Left out, reordered, changed.
        let [first, second, third] = [0, 1, 2].map(|index| ours.entries()[index].clone());
        assert!(!Roster::default().extend(second.clone()));
        let mut other = Roster::default();
        assert!(other.extend(first));
        assert!(!other.extend(third));
        let mut changed = second;
        changed.previous[0] ^= 1;
        assert!(!other.extend(changed));
    }

    #[test]
    fn data_is_part_of_the_chain_and_the_last_of_a_role_counts() {
        let mut roster = Roster::default();
        let worker = |key: u8, data| {
            let mut worker = admission(Role::Worker(0), "hfl");
            (worker.keys[0], worker.data) = ([key; 32], data);
            worker
        };
        assert!(roster.admit(worker(1, Some([8; 32]))) && roster.admit(worker(2, None)));
        assert_eq!(roster.data_of(Role::Worker(0)), Some([8; 32]), "the one who said it");
        assert_eq!(roster.data_of(Role::Worker(1)), None);
        let digests = [None, Some([0; 32]), Some([8; 32])].map(|data| {
            let admission = worker(1, data);
            Entry { number: 0, previous: [0; 32], admission }.digest()
        });
        assert!(digests[0] != digests[1] && digests[1] != digests[2]);
    }

    #[test]
    fn evidence_in_an_entry_is_judged_with_everything_it_was_bound_to() {
        let policy = Policy::same_as(SimPlatform::new(NOW).report());
        let verifier = Verifier { trust: Trust::Simulated, policy };
        let genuine = admission(Role::Worker(1), "hfl");
        genuine.verify(&verifier, NOW).expect("a fellow");
        let other_image = admission(Role::Worker(1), "evil").verify(&verifier, NOW);
        assert!(matches!(other_image, Err(Rejection::Measurement(_))));
        let changes: [fn(&mut Admission); 8] = [
            |admission| admission.role = Role::Worker(2),
            |admission| admission.server = Role::ParameterServer(1),
            |admission| admission.keys[0][0] ^= 1,
            |admission| admission.nonces[1][0] ^= 1,
            |admission| admission.exporter[0] ^= 1,
            |admission| admission.job[0] ^= 1,
            |admission| admission.policies[0][0] ^= 1,
            |admission| admission.policies[1][0] ^= 1,
        ];
        for change in changes {
            let mut changed = genuine.clone();
            change(&mut changed);
            assert_eq!(changed.verify(&verifier, NOW), Err(Rejection::ReportData));
        }
    }
}
