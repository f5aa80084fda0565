//! What may lie beside a model that its passport does not sign: files of workers, and what changes while a job runs.

use crate::history;
use crate::job::Job;
use crate::passport::key;
use crate::training::checkpoint::DATA_FILE;
use crate::training::store::MANIFEST;
use crate::training::{contradiction, ledger, roster, rounds};

/// Files that change while a job runs: the passport of the best model so far says nothing of them.
pub const CHANGING: [&str; 6] =
    [DATA_FILE, rounds::FILE, ledger::FILE, roster::FILE, history::FILE, history::REPORT];

/// Files of workers that share the folder, and those whose content is no part of a model.
pub fn beside(job: &Job) -> Vec<String> {
    let digest = job.digest();
    let of_workers = (0..job.workers).flat_map(|worker| {
        [ledger::file_of(worker, &digest), contradiction::file_of(worker, &digest)]
    });
    let own = [key::FILE.to_owned(), MANIFEST.to_owned()];
    own.into_iter().chain(of_workers).collect()
}
