//! The fuzzing entry of passports, which asserts more than the absence of a panic.

use std::sync::OnceLock;

use serde_json::Value;

use crate::job::Job;
use crate::passport::key::{PassportKey, PublicKey};
use crate::passport::{Files, attestation, bundle, evaluation, signature, training};

/// A bundle, or the statement in one. What is read of a statement is all of it, and no key of ours has
/// signed it.
pub fn passport(data: &[u8]) {
    static KEY: OnceLock<PublicKey> = OnceLock::new();
    let key = KEY.get_or_init(|| PassportKey::generate().expect("random numbers").public());
    let enveloped = bundle::peek(data).ok();
    assert!(enveloped.is_none() || bundle::verify(data, key).is_err());
    for found in [enveloped, serde_json::from_slice::<Value>(data).ok()].into_iter().flatten() {
        let mut files = Files::new();
        if let Some((signed, ignored)) = signature::read(&found) {
            assert_eq!(signature::make(&signed, &ignored[4..]), found);
            files = signed;
        }
        if let Some(said) = training::read(&found) {
            assert_eq!(said.members.len(), usize::from(said.job.workers));
            assert!(evaluation::read(&found, &said.files, &said.job).is_none(), "of another type");
            files = said.files;
        }
        if let Some(tested) = evaluation::read(&found, &files, &Job::default()) {
            assert_eq!(evaluation::make(&files, &Job::default(), &tested), found);
        }
        if let Ok(said) = attestation::read(&found, &files, [None; 3]) {
            assert_eq!(said.collateral.len(), said.roster.entries().len() + 1);
            assert_eq!(attestation::key_of_statement(&found), Some(said.key));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_of_the_fuzz_target_replay() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/passport");
        for entry in std::fs::read_dir(seeds).expect("seeds") {
            super::passport(&std::fs::read(entry.expect("entry").path()).expect("a seed"));
        }
    }
}
