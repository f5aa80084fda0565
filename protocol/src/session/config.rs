//! `Config`: who we are in every session of a run, and whom we accept.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

use crate::Attester;
use crate::identity::binding::Binding;
use crate::identity::certificate::Identity;
use crate::identity::owner::OwnerKey;
use crate::judge::policy::Policy;
use crate::judge::verify::Verifier;
use crate::role::Role;
use crate::session::roster::Admission;
use crate::session::tls::Tls;

/// How long open connections go without fresh evidence, where nothing else is said.
const REATTEST: Duration = Duration::from_secs(600);

/// Who we are, and whom we accept.
pub struct Config {
    /// Our role.
    pub role: Role,
    /// Source of our evidence; `None` where an owner's key stands in its place.
    pub attester: Option<Arc<dyn Attester>>,
    /// Judge of the peers' evidence.
    pub verifier: Verifier,
    /// Seconds since 1970.
    pub clock: fn() -> u64,
    /// How often peers of open connections show fresh evidence, if they do.
    pub reattest: Option<Duration>,
    /// Digest of the policy that we judge others by.
    pub(super) policy: [u8; 32],
    /// Collateral of our own platform, which is shown to peers that may have none.
    pub(super) collateral: Vec<u8>,
    pub(super) identity: Arc<Identity>,
    pub(super) tls: Tls,
}

impl Config {
    /// Makes a fresh key with evidence for this run.
    ///
    /// # Errors
    /// When the platform gives no quote.
    pub fn new(
        role: Role,
        attester: Arc<dyn Attester>,
        verifier: Verifier,
        clock: fn() -> u64,
    ) -> io::Result<Self> {
        let identity = Identity::new(&*attester, clock())?;
        Self::with_identity(role, Some(attester), verifier, clock, identity)
    }

    /// The same for an owner's key, with evidence where there is a source of it.
    ///
    /// # Errors
    /// When the platform gives no quote.
    pub fn of_owner(
        role: Role,
        key: &OwnerKey,
        attester: Option<Arc<dyn Attester>>,
        verifier: Verifier,
        clock: fn() -> u64,
    ) -> io::Result<Self> {
        let identity = Identity::of_owner(key, attester.as_deref(), clock())?;
        Self::with_identity(role, attester, verifier, clock, identity)
    }

    pub(crate) fn with_identity(
        role: Role,
        attester: Option<Arc<dyn Attester>>,
        verifier: Verifier,
        clock: fn() -> u64,
        identity: Identity,
    ) -> io::Result<Self> {
        let identity = Arc::new(identity);
        let tls = Tls::new(&identity, &verifier, clock).map_err(io::Error::other)?;
        let collateral = verifier.own_collateral(identity.certificate(), clock());
        let policy = verifier.policy.digest();
        let reattest = Some(REATTEST);
        Ok(Self { role, attester, verifier, clock, reattest, policy, collateral, identity, tls })
    }

    /// The same identity and trust anchor with another policy for those who come from now on. Asks nobody.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn with_policy(&self, policy: Policy) -> io::Result<Self> {
        let verifier = Verifier { trust: self.verifier.trust.clone(), policy };
        let tls = Tls::new(&self.identity, &verifier, self.clock).map_err(io::Error::other)?;
        Ok(Self {
            role: self.role,
            attester: self.attester.clone(),
            policy: verifier.policy.digest(),
            verifier,
            clock: self.clock,
            reattest: self.reattest,
            collateral: self.collateral.clone(),
            identity: Arc::clone(&self.identity),
            tls,
        })
    }

    /// The collateral of the platform of this quote, as far as it is at hand; there is none of simulated ones. Asks
    /// nobody.
    pub fn collateral_of(&self, quote: &[u8]) -> Option<Vec<u8>> {
        self.verifier.collateral_of(quote, (self.clock)())
    }

    /// A fresh quote; empty where an owner's key stands in its place.
    ///
    /// # Errors
    /// What the platform answered instead.
    pub fn quote(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        self.attester.as_ref().map_or(Ok(Vec::new()), |attester| attester.quote(report_data))
    }

    /// SHA-256 of our SubjectPublicKeyInfo: what policies list.
    pub fn key(&self) -> &[u8; 32] {
        &self.identity.spki_hash
    }

    /// Digest of the policy that we judge others by.
    pub fn policy(&self) -> &[u8; 32] {
        &self.policy
    }

    /// Our own evidence for a job, as an entry of its roster: we admit ourselves. Blocks until there is a quote.
    ///
    /// # Errors
    /// When the platform gives no quote, or there are no random numbers.
    pub fn own_admission(&self, job: [u8; 32]) -> io::Result<Admission> {
        let (admission, report_data) = self.own_claim(job)?;
        Ok(Admission { quote: self.quote(&report_data)?, ..admission })
    }

    /// The same without the quote, and the report data that it is to be over. There is no connection, so the exporter
    /// is zero.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn own_claim(&self, job: [u8; 32]) -> io::Result<(Admission, [u8; 64])> {
        let nonces = [nonce()?, nonce()?];
        let (key, exporter) = (self.identity.spki_hash, [0; 32]);
        let binding = Binding {
            prover: self.role,
            verifier: self.role,
            from_client: true,
            keys: [&key, &key],
            nonces: [&nonces[0], &nonces[1]],
            exporter: &exporter,
            job: &job,
            policies: [&self.policy; 2],
        };
        let report_data = binding.report_data();
        let (role, server, time) = (self.role, self.role, (self.clock)());
        let (keys, policies) = ([key; 2], [self.policy; 2]);
        let (data, quote) = (None, Vec::new());
        let admission =
            Admission { role, server, time, keys, nonces, exporter, job, policies, data, quote };
        Ok((admission, report_data))
    }
}

/// Fresh random bytes.
pub(super) fn nonce() -> io::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    let filled = SystemRandom::new().fill(&mut nonce);
    filled.map_err(|_| io::Error::other("no random numbers"))?;
    Ok(nonce)
}
