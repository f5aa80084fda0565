//! Collateral that is at hand, and where more is to be had: files, a cache in a folder, a service.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::evidence::quote::Quote;
use crate::hex::Hex;
use crate::judge::dcap::{self, Anchor, Collateral, Fault, Item, Origin, Problem, Verdict};
use crate::services::pccs::Pccs;

/// Most kinds of platforms that a service is asked about: more take no part in a job.
const ORIGINS_MAX: usize = 64;
/// Pause between two requests about one kind of platform.
const PAUSE: Duration = Duration::from_secs(60);
/// Largest file of the cache.
const FILE_LEN_MAX: u64 = 8 << 20;
/// Largest bundle that a peer is shown.
pub(crate) const SHOWN_LEN_MAX: usize = 192 << 10;
/// Collateral that ends so soon, in seconds, is fetched again while the old still serves.
const ENDS_SOON: u64 = 2 * 86400;

/// Collateral of the platforms that may take part.
#[derive(Debug, Default)]
pub struct Shelf {
    root: Anchor,
    bundles: Mutex<Vec<Arc<Collateral>>>,
    service: Option<Pccs>,
    cache: Option<PathBuf>,
    asked: Mutex<BTreeMap<Origin, Asked>>,
}

/// When a service was asked about a kind of platform.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// It has not answered yet.
    Now,
    At(Instant),
}

/// How badly a verdict needs other collateral.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// There is no verdict without.
    Now,
    /// What there is serves for a while.
    Soon,
}

impl Shelf {
    /// Only what is there, and no network.
    pub fn new(bundles: Vec<Collateral>) -> Self {
        let bundles = bundles.into_iter().map(Arc::new).collect();
        Self { bundles: Mutex::new(bundles), ..Self::default() }
    }

    /// What is missing or over is fetched from a service, and kept in a folder if there is one.
    #[must_use]
    pub fn with_service(mut self, service: Pccs, cache: Option<PathBuf>) -> Self {
        if let Some(folder) = &cache {
            let files = fs::read_dir(folder).into_iter().flatten().flatten();
            // Whoever has the storage could leave a pipe or a giant there.
            let fits = |file: &fs::DirEntry| {
                file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= FILE_LEN_MAX)
            };
            let texts = files.filter(fits).filter_map(|file| fs::read(file.path()).ok());
            // A file that is none is fetched again.
            let found = texts.filter_map(|text| Collateral::parse(&text).ok());
            self.bundles().extend(found.map(Arc::new));
        }
        self.service = Some(service);
        self.cache = cache;
        self
    }

    /// The verdict on a quote with collateral that its peer brought, for platforms of which nothing else is there.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn judge_by(
        &self,
        shown: &Collateral,
        quote: &Quote,
        now: u64,
    ) -> Result<Verdict, Fault> {
        dcap::verify(quote, shown, &self.root, now)
    }

    /// Whether a verdict by what is at hand would be better after [`Shelf::refresh`].
    pub(crate) fn lacks(&self, judged: &Result<Verdict, Fault>, now: u64) -> Option<Lack> {
        match judged {
            Ok(verdict) if verdict.valid[1] < now.saturating_add(ENDS_SOON) => Some(Lack::Soon),
            Ok(_) => None,
            Err(fault) => is_lack(fault).then_some(Lack::Now),
        }
    }

    /// The kind of platform to ask the service about, if there is one and it was not asked a moment ago. Only
    /// quotes of genuine platforms make anybody ask.
    ///
    /// # Errors
    /// What is wrong with the quote itself.
    pub(crate) fn may_ask(&self, quote: &Quote, now: u64) -> Result<Option<Origin>, Fault> {
        let origin = dcap::origin(quote, &self.root, now)?;
        let asked = self.asked();
        let full = asked.len() >= ORIGINS_MAX && !asked.contains_key(&origin);
        let rests = matches!(asked.get(&origin), Some(Asked::At(at)) if at.elapsed() < PAUSE);
        Ok((self.service.is_some() && !full && !rests).then_some(origin))
    }

    /// Whether a quote is of a genuine platform under the root that the shelf believes in.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check_genuine(&self, quote: &Quote, now: u64) -> Result<(), Fault> {
        dcap::origin(quote, &self.root, now).map(drop)
    }

    /// Our own platform's collateral, to be shown to peers; `None` where there is none. Blocks.
    pub(crate) fn of_platform(&self, quote: &Quote, now: u64) -> Option<Vec<u8>> {
        let judged = self.judge(quote, now);
        if self.lacks(&judged, now).is_some()
            && let Some(origin) = self.may_ask(quote, now).ok()?
        {
            self.refresh(origin);
        }
        let bundles = self.bundles().clone();
        let serves =
            |bundle: &&Arc<Collateral>| dcap::verify(quote, bundle, &self.root, now).is_ok();
        let bytes = bundles.iter().rev().find(serves)?.encode().into_bytes();
        (bytes.len() <= SHOWN_LEN_MAX).then_some(bytes)
    }

    /// The verdict on a quote with the collateral of its platform that is at hand.
    ///
    /// # Errors
    /// The fault that says most.
    pub(crate) fn judge(&self, quote: &Quote, now: u64) -> Result<Verdict, Fault> {
        let of_another = |fault: &Fault| {
            matches!(fault, Fault { item: Item::TcbInfo, problem: Problem::Mismatch(_) })
        };
        let mut accepted = None;
        let mut refused = None;
        let bundles = self.bundles().clone();
        for bundle in bundles.iter().rev() {
            match dcap::verify(quote, bundle, &self.root, now) {
                Ok(verdict) if accepted.is_none() => accepted = Some(verdict),
                Ok(_) => {}
                // An older list that does not know of it yet does not heal a revocation.
                Err(fault) if is_revocation(&fault) => return Err(fault),
                // A fault of this platform's own collateral says more than that of another's.
                Err(fault) if refused.as_ref().is_none_or(of_another) => refused = Some(fault),
                Err(_) => {}
            }
        }
        let missing = Fault { item: Item::Collateral, problem: Problem::Missing("any platform") };
        accepted.ok_or(refused.unwrap_or(missing))
    }

    /// Fetches the collateral of a kind of platform; a failure is logged, and leaves what is at hand. Blocks.
    pub(crate) fn refresh(&self, origin: Origin) {
        self.asked().insert(origin, Asked::Now);
        let fetched = self.service.as_ref().map(|service| service.fetch(&origin));
        match fetched {
            Some(Ok(fetched)) => self.keep(&origin, fetched),
            Some(Err(error)) => log::warn!("collateral [{}]: {error}", error.code()),
            None => {}
        }
        self.asked().insert(origin, Asked::At(Instant::now()));
    }

    fn keep(&self, origin: &Origin, fetched: Collateral) {
        if let Some(folder) = &self.cache {
            let kind = if origin.is_tdx { "tdx" } else { "sgx" };
            let path = folder.join(format!("{kind}-{}.json", Hex(&origin.fmspc)));
            if let Err(error) = fs::write(&path, fetched.encode()) {
                log::warn!("{}: {error}", path.display());
            }
        }
        self.bundles().push(Arc::new(fetched));
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<Origin, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bundles(&self) -> MutexGuard<'_, Vec<Arc<Collateral>>> {
        self.bundles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether other collateral could change the verdict.
pub(crate) fn is_lack(fault: &Fault) -> bool {
    matches!(
        (fault.item, &fault.problem),
        (Item::Collateral, Problem::Missing(_))
            | (Item::TcbInfo, Problem::Mismatch(_))
            | (
                Item::TcbInfo | Item::QeIdentity | Item::PckCrl | Item::RootCrl | Item::TcbSigner,
                Problem::Expired(_)
            )
    )
}

/// Whether an authentic list takes back the platform or its authority: a signer has successors.
fn is_revocation(fault: &Fault) -> bool {
    matches!(fault, Fault { item: Item::Pck | Item::Intermediate, problem: Problem::Revoked })
}

#[cfg(test)]
mod tests {
    use ring::digest::{SHA256, digest};

    use super::*;
    use crate::judge::dcap::tests::generated;

    /// When the generated cases are judged: 2026-09-01.
    const NOW: u64 = 1_788_220_800;

    #[test]
    fn a_platform_revoked_in_one_list_is_not_accepted_by_another() {
        let folder = generated("revoked");
        let read = |file: &str| fs::read(folder.join("synthetic").join(file)).expect(file);
        let collateral = |case: &str| {
            Collateral::parse(&read(&format!("{case}/collateral.json"))).expect("collateral")
        };
        let quote = Quote::parse(&read("revoked_leaf/quote.bin")).expect("a quote");
        let newer = collateral("revoked_leaf");
        let older = Collateral { pck_crl: collateral("auth_len_0").pck_crl, ..newer.clone() };
        let root = digest(&SHA256, &read("revoked_leaf/root.der"));
        fs::remove_dir_all(&folder).expect("remove");
        let judge = |bundles: Vec<Collateral>| {
            let root = Anchor::new(root.as_ref().try_into().expect("32 bytes"));
            Shelf { root, ..Shelf::new(bundles) }.judge(&quote, NOW).map(|verdict| verdict.status)
        };

        judge(vec![older.clone()]).expect("the older list alone does not know it");
        for bundles in [vec![older.clone(), newer.clone()], vec![newer, older]] {
            let fault = judge(bundles).expect_err("revoked");
            assert_eq!((fault.item, fault.problem), (Item::Pck, Problem::Revoked));
        }
    }
}
