//! What a worker keeps of the receipts that it is told, beside its model or in a directory of its own.

use std::time::{Duration, Instant};

use protocol::{Role, hex};

use crate::failure::Failure;
use crate::job::receipt::Hash;
use crate::training::contradiction::{self, Contradiction};
use crate::training::ledger::{self, Ledger};
use crate::training::store::{Progress, Store};
use crate::training::worker::Worker;

/// Between two writings while rounds go by. What a worker that is killed was told since is lost: the rounds are then
/// known by their heads alone, as those of ps0 and of other workers.
const PAUSE: Duration = Duration::from_secs(10);

/// Keeps the receipts of one worker.
pub(super) struct Keeper {
    worker: u16,
    /// Until which step they are written, and when they were.
    kept: u64,
    at: Instant,
}

impl Keeper {
    pub(super) fn new(worker: u16) -> Self {
        Self { worker, kept: 0, at: Instant::now() }
    }

    /// What an earlier process has kept of this job. What cannot be read is no receipt: without it nothing that the
    /// server says could be compared.
    pub(super) fn load(&self, store: &Store, job: &Hash) -> Result<Option<Ledger>, Failure> {
        let name = ledger::file_of(self.worker, job);
        let failed = |error: String| {
            let failure = Failure::new(format!("{}: {error}", store.name_of(&name)));
            failure.hint("move it away: earlier rounds are then not known here")
        };
        let bytes = store.read(&name).map_err(|error| failed(error.to_string()))?;
        bytes.map(|bytes| Ledger::parse(&bytes).map_err(failed)).transpose()
    }

    /// Writes them if there are new ones and it is time to, or `now`.
    pub(super) fn keep(
        &mut self,
        store: Option<&mut Store>,
        worker: &Worker,
        job: &Hash,
        now: bool,
    ) {
        let (step, _) = worker.ledger().end();
        let Some(store) = store.filter(|_| step != self.kept) else { return };
        if !now && self.at.elapsed() < PAUSE {
            return;
        }
        (self.kept, self.at) = (step, Instant::now());
        let bytes = worker.ledger().encode();
        let name = ledger::file_of(self.worker, job);
        let saved = store.save(&name, Progress { job: *job, step }, &|out| out.write_all(&bytes));
        if let Err(error) = saved {
            let kept = "the training goes on, its receipts are in memory alone";
            log::warn!("{}", store.not_written(&name, &error, kept));
        }
    }

    /// Writes down what a server said that cannot be, and ends with it.
    pub(super) fn accuse(
        &self,
        store: Option<&mut Store>,
        worker: &Worker,
        found: &Contradiction,
        job: &Hash,
    ) -> Failure {
        let entries = worker.roster().entries();
        let mut servers =
            entries.iter().filter(|entry| matches!(entry.admission.role, Role::ParameterServer(_)));
        let key = servers.next_back().map_or([0; 32], |entry| entry.admission.keys[0]);
        let bytes = found.encode(self.worker, &key, worker.roster());
        let name = contradiction::file_of(self.worker, job);
        let progress = Progress { job: *job, step: found.step };
        let told = hex(&found.told.head());
        let evidence = match store {
            None => format!("ps0 told head {told}; there is no place to keep the evidence"),
            Some(store) => match store.save(&name, progress, &|out| out.write_all(&bytes)) {
                Ok(()) => format!("the evidence is in {}", store.name_of(&name)),
                Err(error) => {
                    format!("ps0 told head {told}; {}: {error}", store.name_of(&name))
                }
            },
        };
        Failure::new(format!("EQUIVOCATION: {found}; {evidence}")).hint(
            "tell the other participants. Where ps0 or a worker has moved to another kind of CPU and made rounds \
             again, move the receipts of this job away",
        )
    }
}
