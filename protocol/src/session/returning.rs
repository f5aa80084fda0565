//! Who comes back to a role: the one of before, where the policy lists keys or machines for several roles together.

use super::Session;
use crate::evidence::vtpm::Evidence;
use crate::judge::dcap::{self, Platform};
use crate::rejection::Rejection;
use crate::session::roster::Admission;

impl Session {
    /// Whether the peer may follow who was admitted in its role before. Where the policy's lists name this very role
    /// they say all; a list of several roles does not make one of them another.
    ///
    /// # Errors
    /// When it shows another key, or runs on another machine.
    pub fn check_return(&self, before: &Admission) -> Result<(), Rejection> {
        let peer = self.peer().ok_or(Rejection::MissingEvidence)?;
        let policy = &self.config.verifier.policy;
        if policy.shares_keys(before.role) && peer.key != before.keys[0] {
            return Err(Rejection::Successor("key"));
        }
        let platform = peer.verdict.as_ref().and_then(|verdict| verdict.platform.as_deref());
        match platform.filter(|_| policy.shares_machines(before.role)) {
            Some(now) if !is_on(&before.quote, &now.machine) => {
                Err(Rejection::Successor("machine"))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a quote that was verified once is of this machine.
fn is_on(quote: &[u8], machine: &Platform) -> bool {
    let before = Evidence::parse(quote).ok().and_then(|before| dcap::machine(&before.quote).ok());
    before.is_some_and(|before| {
        before.ppid == machine.ppid
            || before.instance_id.is_some() && before.instance_id == machine.instance_id
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::pccs::tests::real_td;

    #[test]
    fn a_quote_tells_its_machine() {
        let (quote, collateral, now) = real_td();
        let parsed = crate::Quote::parse(&quote).expect("a quote");
        let verdict = dcap::verify(&parsed, &collateral, &dcap::Anchor::default(), now);
        let mut machine = verdict.expect("genuine").machine;
        assert!(is_on(&quote, &machine));
        assert!(!is_on(&quote[..quote.len() / 2], &machine) && !is_on(b"", &machine));
        machine.ppid[0] ^= 1;
        assert!(machine.instance_id.is_none() || is_on(&quote, &machine), "one of its processors");
        machine.instance_id = machine.instance_id.map(|_| [9; 16]);
        assert!(!is_on(&quote, &machine));
    }
}
