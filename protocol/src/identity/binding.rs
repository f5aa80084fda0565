//! What a session's fresh quote is bound to: this connection, these two roles, this job, this direction.
//!
//! A quote in a certificate can be relayed by whoever terminates TLS; this one cannot: the exporter
//! (RFC 9266 style) differs on every connection, and roles and keys in order keep a party from
//! reflecting our own evidence to us.

use ring::digest::{Context, SHA512};

use crate::role::Role;

/// Everything that goes into the report data of one side's quote.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// Who shows the quote.
    pub prover: Role,
    /// Who asked for it.
    pub verifier: Role,
    /// Whether the prover opened the connection.
    pub from_client: bool,
    /// SHA-256 of both SubjectPublicKeyInfos: the prover's, the verifier's.
    pub keys: [&'a [u8; 32]; 2],
    /// Both nonces: the prover's, the verifier's.
    pub nonces: [&'a [u8; 32]; 2],
    /// TLS exporter of the connection.
    pub exporter: &'a [u8; 32],
    /// Digest of the job.
    pub job: &'a [u8; 32],
    /// Digests of the policies that both judge others by: the prover's, the verifier's.
    pub policies: [&'a [u8; 32]; 2],
}

/// Label of the TLS exporter.
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-hfl-attest-v1";
const LABEL: &[u8] = b"hfl-session-v2";

impl Binding<'_> {
    /// SHA-512 over all parts; each has a fixed length, so that no two bindings share an encoding.
    pub fn report_data(&self) -> [u8; 64] {
        let mut context = Context::new(&SHA512);
        context.update(LABEL);
        context.update(&self.prover.encode());
        context.update(&self.verifier.encode());
        context.update(&[u8::from(self.from_client)]);
        let parts = self.keys.into_iter().chain(self.nonces).chain([self.exporter, self.job]);
        for part in parts.chain(self.policies) {
            context.update(part);
        }
        context.finish().as_ref().try_into().expect("SHA-512 has 64 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_changes_the_report_data() {
        let (a, b) = ([1; 32], [2; 32]);
        let base = Binding {
            prover: Role::Worker(0),
            verifier: Role::ParameterServer(0),
            from_client: true,
            keys: [&a, &b],
            nonces: [&a, &b],
            exporter: &a,
            job: &a,
            policies: [&a, &b],
        };
        let variants = [
            Binding { prover: Role::Worker(1), ..base },
            Binding { prover: Role::ParameterServer(0), verifier: Role::Worker(0), ..base },
            Binding { from_client: false, ..base },
            Binding { keys: [&b, &a], ..base },
            Binding { nonces: [&b, &a], ..base },
            Binding { exporter: &b, ..base },
            Binding { job: &b, ..base },
            Binding { policies: [&b, &b], ..base },
            Binding { policies: [&a, &a], ..base },
        ];
        for variant in variants {
            assert_ne!(variant.report_data(), base.report_data(), "{variant:?}");
        }
    }
}
