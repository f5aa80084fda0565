//! Collateral that is at hand, and where more is to be had: files, a cache in a folder, a service.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::evidence::quote::{Body, Quote};
use crate::hex::Hex;
use crate::judge::dcap::{self, Anchor, Collateral, Fault, Found, Item, Origin, Problem, Verdict};
use crate::services::pccs::Pccs;
use crate::services::seen::Seen;

/// Most kinds of platforms that a service is asked about: more take no part in a job.
const ORIGINS_MAX: usize = 64;
/// Pause between two requests about one kind of platform: strangers can ask for as many as they like. What still serves
/// waits longer: a service may have nothing newer.
const PAUSE: Duration = Duration::from_secs(60);
const PAUSE_SOON: Duration = Duration::from_secs(3600);
/// Bundles of one kind of platform that are kept of those that a service gave.
const FETCHED_MAX: usize = 2;
/// Largest file of the cache.
const FILE_LEN_MAX: u64 = 8 << 20;
/// Largest bundle that a peer is shown: with the quote it has to fit into one message.
pub(crate) const SHOWN_LEN_MAX: usize = 192 << 10;
/// Collateral that ends so soon, in seconds, is fetched again while the old still serves.
const ENDS_SOON: u64 = 2 * 86400;
/// Collateral that is so old, in seconds, is fetched again too: Intel's documents are valid for 30 days, and a new
/// revocation is not to wait for their end.
const OLD: u64 = 7 * 86400;

/// Collateral of the platforms that may take part.
#[derive(Debug, Default)]
pub struct CollateralStore {
    root: Anchor,
    bundles: Mutex<Bundles>,
    seen: Seen,
    /// No clock is before it, whatever was seen.
    floor: u64,
    service: Option<Pccs>,
    cache: Option<PathBuf>,
    asked: Mutex<BTreeMap<Origin, Asked>>,
}

/// What is at hand.
#[derive(Debug, Default)]
struct Bundles {
    /// Files of the options, and those of before.
    given: Vec<Arc<Collateral>>,
    /// Of the service: the last two for each kind of platform, in case that it goes back.
    fetched: BTreeMap<Origin, Vec<Arc<Collateral>>>,
}

impl Bundles {
    fn fetched(&mut self, origin: Origin, bundle: Collateral) {
        let of_origin = self.fetched.entry(origin).or_default();
        of_origin.push(Arc::new(bundle));
        of_origin.drain(..of_origin.len().saturating_sub(FETCHED_MAX));
    }

    fn all(&self) -> Vec<Arc<Collateral>> {
        self.given.iter().chain(self.fetched.values().flatten()).cloned().collect()
    }
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

impl CollateralStore {
    /// Only what is there, and no network.
    pub fn new(bundles: Vec<Collateral>) -> Self {
        let given = bundles.into_iter().map(Arc::new).collect();
        let bundles = Bundles { given, fetched: BTreeMap::new() };
        Self { bundles: Mutex::new(bundles), ..Self::default() }
    }

    /// No clock is before this moment, in seconds since 1970, such as when this program was built.
    #[must_use]
    pub fn with_floor(self, floor: u64) -> Self {
        Self { floor, ..self }
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
            self.bundles().given.extend(found.map(Arc::new));
            self.seen = Seen::kept_in(folder);
        }
        self.service = Some(service);
        self.cache = cache;
        self
    }

    /// Whether a verdict by what is at hand would be better after [`CollateralStore::refresh`].
    pub(crate) fn lacks(&self, judged: &Result<Verdict, Fault>, now: u64) -> Option<Lack> {
        match judged {
            Ok(verdict) => {
                let ends_soon = verdict.valid[1] < now.saturating_add(ENDS_SOON);
                let is_old = verdict.issued.saturating_add(OLD) < now;
                (ends_soon || is_old).then_some(Lack::Soon)
            }
            Err(fault) => is_lack(fault).then_some(Lack::Now),
        }
    }

    /// The kind of platform to ask the service about, if there is one and it was not asked a moment ago. Only
    /// quotes of genuine platforms make anybody ask.
    ///
    /// # Errors
    /// What is wrong with the quote itself.
    pub(crate) fn may_ask(
        &self,
        quote: &Quote,
        lack: Lack,
        now: u64,
    ) -> Result<Option<Origin>, Fault> {
        let origin = dcap::origin(quote, &self.root, now)?;
        let asked = self.asked();
        let full = asked.len() >= ORIGINS_MAX && !asked.contains_key(&origin);
        let pause = if lack == Lack::Soon { PAUSE_SOON } else { PAUSE };
        let rests = matches!(asked.get(&origin), Some(Asked::At(at)) if at.elapsed() < pause);
        Ok((self.service.is_some() && !full && !rests).then_some(origin))
    }

    /// Whether a quote is of a genuine platform under the root that the store believes in.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check_genuine(&self, quote: &Quote, now: u64) -> Result<(), Fault> {
        dcap::origin(quote, &self.root, now).map(drop)
    }

    /// Our own platform's collateral, to be shown to peers; `None` where there is none. Blocks.
    pub(crate) fn of_platform(&self, quote: &Quote, now: u64) -> Option<Vec<u8>> {
        let judged = self.judge(quote, None, now);
        if let Some(lack) = self.lacks(&judged, now)
            && let Some(origin) = self.may_ask(quote, lack, now).ok()?
        {
            self.refresh(origin);
        }
        self.at_hand(quote, now)
    }

    /// The same of what is at hand. Asks nobody.
    pub(crate) fn at_hand(&self, quote: &Quote, now: u64) -> Option<Vec<u8>> {
        let kept = self.bundles().all();
        let all: Vec<&Collateral> = kept.iter().map(|bundle| &**bundle).collect();
        let Found { newest, .. } = dcap::newest(quote, &all, &self.root, now).ok()??;
        dcap::verify(quote, &newest, &self.root, now).ok()?;
        let bytes = newest.encode().into_bytes();
        (bytes.len() <= SHOWN_LEN_MAX).then_some(bytes)
    }

    /// The verdict on a quote with the newest documents of its platform, of those that are at hand and those that
    /// its peer brought; never by an evaluation number below one that was seen.
    ///
    /// # Errors
    /// What is wrong with the quote or these documents; [`Problem::Older`].
    pub(crate) fn judge(
        &self,
        quote: &Quote,
        shown: Option<&Collateral>,
        now: u64,
    ) -> Result<Verdict, Fault> {
        let kept = self.bundles().all();
        let all: Vec<&Collateral> = shown.into_iter().chain(kept.iter().map(|b| &**b)).collect();
        let missing =
            || Fault { item: Item::Collateral, problem: Problem::Missing("any platform") };
        let verdict = match all[..] {
            [] => return Err(missing()),
            // What there is one of is the newest.
            [only] => self.dated(dcap::verify(quote, only, &self.root, now))?,
            _ => {
                let found = dcap::newest(quote, &all, &self.root, now)?;
                let Found { newest, ahead } = found.ok_or_else(missing)?;
                ahead.into_iter().for_each(|issued| self.seen.note(issued));
                self.dated(dcap::verify(quote, &newest, &self.root, now))?
            }
        };
        let kind = (verdict.machine.fmspc, matches!(quote.body, Body::Td(_)));
        match self.seen.raise(kind, verdict.evaluation_number) {
            seen if seen > verdict.evaluation_number => {
                Err(Fault { item: Item::Collateral, problem: Problem::Older(seen) })
            }
            _ => Ok(verdict),
        }
    }

    /// When the newest authentic document was issued that was ever seen, in seconds since 1970, or the floor: no clock
    /// is before it.
    pub fn newest(&self) -> u64 {
        self.seen.newest().max(self.floor)
    }

    /// Takes note of the dates of documents.
    fn dated(&self, judged: Result<Verdict, Fault>) -> Result<Verdict, Fault> {
        match &judged {
            Ok(verdict) => self.seen.note(verdict.valid[0]),
            // Whoever is before it has a signature that was checked, and a clock that is behind.
            Err(Fault { item, problem: Problem::NotYetValid(start) }) if is_document(*item) => {
                self.seen.note(*start);
            }
            Err(_) => {}
        }
        judged
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
        self.bundles().fetched(*origin, fetched);
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<Origin, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bundles(&self) -> MutexGuard<'_, Bundles> {
        self.bundles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What Intel publishes anew, so that its beginning is a day of the past.
fn is_document(item: Item) -> bool {
    matches!(item, Item::TcbInfo | Item::QeIdentity | Item::PckCrl | Item::RootCrl)
}

/// Whether other collateral could change the verdict.
pub(crate) fn is_lack(fault: &Fault) -> bool {
    matches!(
        (fault.item, &fault.problem),
        (Item::Collateral, Problem::Missing(_) | Problem::Older(_))
            | (Item::TcbInfo, Problem::Mismatch(_))
            | (
                Item::TcbInfo | Item::QeIdentity | Item::PckCrl | Item::RootCrl | Item::TcbSigner,
                Problem::Expired(_)
            )
    )
}

#[cfg(test)]
mod tests {
    use ring::digest::{SHA256, digest};

    use super::*;
    use std::path::Path;

    use crate::judge::dcap::tests::{generated, real};

    /// When the generated cases are judged: 2026-09-01.
    const NOW: u64 = 1_788_220_800;

    /// A real platform whose documents exist under two evaluation numbers that were valid at a time: the quote, the
    /// newer, the older, and the time.
    fn two_numbers() -> (Vec<u8>, Collateral, Collateral, u64) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/judge/dcap/vectors");
        let cases = fs::read_to_string(folder.join("cases.jsonl")).expect("cases");
        let cases = cases.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let cases: Vec<serde_json::Value> = cases.collect();
        let case = |name: &str| {
            let case = cases.iter().find(|case| case["case"] == name).expect(name);
            real(&folder, case)
        };
        let (quote, newer) = case("85ef3b3f-2026-06-12-21");
        let (_, older) = case("85ef3b3f-2026-06-30-19");
        // 2026-07-02.
        (quote, newer, older, 1_782_950_400)
    }

    #[test]
    fn the_newest_document_of_each_kind_decides_whatever_brought_it_and_is_never_undercut() {
        let (bytes, newer, older, now) = two_numbers();
        let quote = Quote::parse(&bytes).expect("a quote");
        let number = |store: &CollateralStore, shown| {
            store.judge(&quote, shown, now).map(|verdict| verdict.evaluation_number)
        };
        let alone = |bundle: &Collateral| number(&CollateralStore::new(vec![bundle.clone()]), None);
        let [low, high] = [alone(&older).expect("genuine"), alone(&newer).expect("genuine")];
        assert!(low < high, "{low} {high}");
        // Whatever comes first, last or from the peer.
        for bundles in [[&older, &newer], [&newer, &older]] {
            let store = CollateralStore::new(bundles.map(Clone::clone).into());
            assert_eq!(number(&store, None), Ok(high));
        }
        assert_eq!(number(&CollateralStore::new(vec![newer.clone()]), Some(&older)), Ok(high));
        assert_eq!(number(&CollateralStore::new(vec![older.clone()]), Some(&newer)), Ok(high));
        // One document of each: the lower number of what is the newest there is.
        let mixed = Collateral { tcb_info: older.tcb_info.clone(), ..newer.clone() };
        assert_eq!(number(&CollateralStore::new(vec![older.clone(), mixed]), None), Ok(low));
        // What was seen once is not forgotten when only older documents are there.
        let store = CollateralStore::default();
        assert_eq!(number(&store, Some(&newer)), Ok(high));
        let fault = number(&store, Some(&older)).expect_err("undercut");
        assert_eq!(fault.problem, Problem::Older(high));
        assert!(is_lack(&fault), "a service may have newer ones");
        // Nor does a forged document of a high number stand in the way.
        let text = String::from_utf8(newer.tcb_info.clone()).expect("JSON");
        let forged = text.replace("EvaluationDataNumber\":", "EvaluationDataNumber\":9");
        assert_ne!(forged, text);
        let forged = Collateral { tcb_info: forged.into_bytes(), ..newer.clone() };
        assert_eq!(number(&CollateralStore::new(vec![newer.clone(), forged]), None), Ok(high));
    }

    #[test]
    fn a_clock_that_is_behind_is_named_whoever_hides_the_newer_documents() {
        let (bytes, newer, older, now) = two_numbers();
        let quote = Quote::parse(&bytes).expect("a quote");
        let policy = crate::Policy::default();
        let verifier = |bundles: Vec<Collateral>| crate::Verifier {
            trust: crate::Trust::Hardware(Arc::new(CollateralStore::new(bundles))),
            policy: policy.clone(),
        };
        let issued = |bundle: &Collateral| {
            dcap::verify(&quote, bundle, &Anchor::default(), now).expect("genuine").valid[0]
        };
        let first = issued(&newer).min(issued(&older));
        let last = issued(&newer).max(issued(&older));
        assert!(first < last);
        // Between the two, the one that is not there yet is evidence against the clock.
        let between = verifier(vec![newer.clone(), older.clone()]);
        let store = match &between.trust {
            crate::Trust::Hardware(store) => Arc::clone(store),
            _ => panic!("hardware"),
        };
        let judged = |at| store.judge(&quote, None, at).map(drop);
        judged(last - dcap::LEEWAY).expect("a few minutes are nothing");
        between.check_clock(last - dcap::LEEWAY).expect("a few minutes are nothing");
        let _ = judged(last - dcap::LEEWAY - 1);
        let behind = between.check_clock(last - dcap::LEEWAY - 1).expect_err("behind");
        assert!(behind.code() == "clock-behind" && behind.to_string().contains("clock is behind"));
        between.check_clock(now).expect("set by now");
        // Where nothing was seen yet, the day of the build says it: an older list does not know who was revoked since.
        let built = CollateralStore::new(vec![older.clone()]).with_floor(now);
        built.judge(&quote, None, now - dcap::LEEWAY - 1).expect("valid on its own days");
        let built = crate::Verifier {
            trust: crate::Trust::Hardware(Arc::new(built)),
            policy: policy.clone(),
        };
        built.check_clock(now - dcap::LEEWAY).expect("a few minutes are nothing");
        let before = built.check_clock(now - dcap::LEEWAY - 1).expect_err("before the build");
        assert_eq!(before, crate::Rejection::Clock(now));
        // One alone says so itself.
        let alone = CollateralStore::new(vec![older.clone()]).judge(&quote, None, first - 90_000);
        let fault = alone.expect_err("not yet");
        assert!(fault.to_string().contains("clock is behind"), "{fault}");
    }

    #[test]
    fn what_is_old_or_ends_soon_is_fetched_again_while_it_serves() {
        let (bytes, newer, _, now) = two_numbers();
        let quote = Quote::parse(&bytes).expect("a quote");
        let verdict = dcap::verify(&quote, &newer, &Anchor::default(), now).expect("genuine");
        let lacks = |age, left| {
            let verdict =
                Verdict { issued: now - age, valid: [now - age, now + left], ..verdict.clone() };
            CollateralStore::default().lacks(&Ok(verdict), now)
        };
        assert_eq!(lacks(OLD, 30 * 86400), None);
        assert_eq!(lacks(OLD + 1, 30 * 86400), Some(Lack::Soon));
        assert_eq!(lacks(0, ENDS_SOON), None);
        assert_eq!(lacks(0, ENDS_SOON - 1), Some(Lack::Soon));
    }

    #[test]
    fn what_is_at_hand_is_given_though_a_service_may_have_better() {
        let (bytes, newer, _, now) = two_numbers();
        let quote = Quote::parse(&bytes).expect("a quote");
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        silent.set_nonblocking(true).expect("listener");
        let at = format!("https://localhost:{}", silent.local_addr().expect("address").port());
        let service = Pccs::new(&at, &crate::Authority::Pinned([7; 32])).expect("a client");
        let store = CollateralStore::new(vec![newer]).with_service(service, None);
        assert_eq!(store.lacks(&store.judge(&quote, None, now), now), Some(Lack::Soon));
        store.at_hand(&quote, now).expect("ours");
        assert!(silent.accept().is_err(), "nobody was asked");
    }

    #[test]
    fn fetched_bundles_do_not_pile_up() {
        let (_, bundle, ..) = two_numbers();
        let mut bundles = Bundles::default();
        for fmspc in [[1; 6], [2; 6]] {
            for _ in 0..100 {
                let origin = Origin { fmspc, is_platform_ca: true, is_tdx: true };
                bundles.fetched(origin, bundle.clone());
            }
        }
        assert_eq!(bundles.all().len(), 2 * FETCHED_MAX);
    }

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
            CollateralStore { root, ..CollateralStore::new(bundles) }
                .judge(&quote, None, NOW)
                .map(|verdict| verdict.status)
        };

        judge(vec![older.clone()]).expect("the older list alone does not know it");
        for bundles in [vec![older.clone(), newer.clone()], vec![newer, older]] {
            let fault = judge(bundles).expect_err("revoked");
            assert_eq!((fault.item, fault.problem), (Item::Pck, Problem::Revoked));
        }
    }
}
