//! Collateral: what Intel publishes about a kind of platform, as signed JSON, parsed into types once.

use serde::{Deserialize, Serialize};

use super::anchor::{Anchor, Encoding};
use super::date::parse_timestamp;
use super::fault::{Fault, Item, Problem};
use super::pck::Platform;
use super::pki::{Certificate, check_dates};
use super::tcb::{Component, Rating, Shortfall, Status};
use crate::evidence::quote::{Body, QE_REPORT_LEN, TdReport};
use crate::hex::{self, Hex};

/// Largest bundle, and largest document in it: peers send bundles. Intel's largest document, a TCB info, is 30 KB.
const BUNDLE_LEN_MAX: usize = 8 << 20;
const DOCUMENT_LEN_MAX: usize = 1 << 20;
/// Most levels of a document, which are walked for each quote; Intel's have some twenty.
const LEVELS_MAX: usize = 256;
const COMPONENTS: usize = 16;

/// Everything that is needed to judge quotes of a kind of platform without a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collateral {
    /// Certificates of the TCB info's signer, in PEM.
    pub tcb_info_issuer_chain: Vec<u8>,
    /// The `tcbInfo` object, byte for byte as it was signed.
    pub tcb_info: Vec<u8>,
    /// Its signature, r and s.
    pub tcb_info_signature: Vec<u8>,
    /// Certificates of the QE identity's signer, in PEM.
    pub qe_identity_issuer_chain: Vec<u8>,
    /// The `enclaveIdentity` object, byte for byte as it was signed.
    pub qe_identity: Vec<u8>,
    /// Its signature, r and s.
    pub qe_identity_signature: Vec<u8>,
    /// Revoked authorities, in DER.
    pub root_ca_crl: Vec<u8>,
    /// Revoked platforms, in DER.
    pub pck_crl: Vec<u8>,
}

/// The bundle's file format: JSON in the shape that `dcap-qvl` made usual.
#[derive(Deserialize, Serialize)]
struct Bundle {
    tcb_info_issuer_chain: String,
    tcb_info: String,
    tcb_info_signature: String,
    qe_identity_issuer_chain: String,
    qe_identity: String,
    qe_identity_signature: String,
    root_ca_crl: String,
    pck_crl: String,
}

impl Collateral {
    /// Reads a bundle: one JSON object, lists and signatures in hexadecimal.
    ///
    /// # Errors
    /// When it is too large, no such object, or not hexadecimal where it should be.
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let malformed = |what| Fault::malformed(Item::Collateral, what);
        if bytes.len() > BUNDLE_LEN_MAX {
            return Err(malformed("more than 8 MiB"));
        }
        let bundle: Bundle =
            serde_json::from_slice(bytes).map_err(|_| malformed("not the JSON of a bundle"))?;
        let binary = |text: &str| hex::unhex(text).ok_or_else(|| malformed("no hexadecimal"));
        Ok(Self {
            tcb_info_signature: binary(&bundle.tcb_info_signature)?,
            qe_identity_signature: binary(&bundle.qe_identity_signature)?,
            root_ca_crl: binary(&bundle.root_ca_crl)?,
            pck_crl: binary(&bundle.pck_crl)?,
            tcb_info_issuer_chain: bundle.tcb_info_issuer_chain.into_bytes(),
            tcb_info: bundle.tcb_info.into_bytes(),
            qe_identity_issuer_chain: bundle.qe_identity_issuer_chain.into_bytes(),
            qe_identity: bundle.qe_identity.into_bytes(),
        })
    }

    /// The bundle that reads back as this.
    pub fn encode(&self) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let digits = |bytes: &[u8]| Hex(bytes).to_string();
        let bundle = Bundle {
            tcb_info_issuer_chain: text(&self.tcb_info_issuer_chain),
            tcb_info: text(&self.tcb_info),
            tcb_info_signature: digits(&self.tcb_info_signature),
            qe_identity_issuer_chain: text(&self.qe_identity_issuer_chain),
            qe_identity: text(&self.qe_identity),
            qe_identity_signature: digits(&self.qe_identity_signature),
            root_ca_crl: digits(&self.root_ca_crl),
            pck_crl: digits(&self.pck_crl),
        };
        serde_json::to_string_pretty(&bundle).expect("plain text")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTcbInfo {
    id: String,
    version: u32,
    issue_date: String,
    next_update: String,
    fmspc: String,
    pce_id: String,
    tcb_evaluation_data_number: u32,
    tdx_module: Option<RawModule>,
    #[serde(default)]
    tdx_module_identities: Vec<RawModuleIdentity>,
    tcb_levels: Vec<RawLevel>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawModule {
    mrsigner: String,
    attributes: String,
    attributes_mask: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawModuleIdentity {
    id: String,
    #[serde(flatten)]
    module: RawModule,
    tcb_levels: Vec<RawIsvLevel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLevel {
    tcb: RawTcb,
    tcb_date: String,
    tcb_status: String,
    #[serde(default, rename = "advisoryIDs")]
    advisory_ids: Vec<String>,
}

#[derive(Deserialize)]
struct RawTcb {
    sgxtcbcomponents: Vec<RawComponent>,
    pcesvn: u16,
    #[serde(default)]
    tdxtcbcomponents: Vec<RawComponent>,
}

#[derive(Deserialize)]
struct RawComponent {
    svn: u8,
    #[serde(default)]
    category: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIsvLevel {
    tcb: RawIsv,
    tcb_date: String,
    tcb_status: String,
    #[serde(default, rename = "advisoryIDs")]
    advisory_ids: Vec<String>,
}

#[derive(Deserialize)]
struct RawIsv {
    isvsvn: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIdentity {
    id: String,
    version: u32,
    issue_date: String,
    next_update: String,
    tcb_evaluation_data_number: u32,
    miscselect: String,
    miscselect_mask: String,
    attributes: String,
    attributes_mask: String,
    mrsigner: String,
    isvprodid: u16,
    tcb_levels: Vec<RawIsvLevel>,
}

/// A patch level of a platform.
struct Level {
    sgx: [u8; COMPONENTS],
    pce_svn: u16,
    tdx: [u8; COMPONENTS],
    /// What the components are called.
    categories: [Vec<String>; 2],
    rating: Rating,
}

/// A patch level of an enclave or a TDX module.
struct IsvLevel {
    isv_svn: u16,
    rating: Rating,
}

/// Who may sign a TDX module, and what it must look like.
struct Module {
    mr_signer: [u8; 48],
    attributes: [u8; 8],
    mask: [u8; 8],
}

/// A module's name such as `TDX_03`, what it must look like, and its levels, highest first.
type ModuleIdentity = (String, Module, Vec<IsvLevel>);

/// The patch levels of a kind of platform.
pub(super) struct TcbInfo {
    fmspc: [u8; 6],
    pce_id: [u8; 2],
    pub(super) evaluation_number: u32,
    /// From and until, in seconds since 1970.
    pub(super) valid: [u64; 2],
    module: Option<Module>,
    modules: Vec<ModuleIdentity>,
    /// Highest first.
    levels: Vec<Level>,
}

/// What the quoting enclave must look like.
pub(super) struct Identity {
    pub(super) evaluation_number: u32,
    /// From and until, in seconds since 1970.
    pub(super) valid: [u64; 2],
    misc_select: [[u8; 4]; 2],
    attributes: [[u8; 16]; 2],
    mr_signer: [u8; 32],
    isv_prod_id: u16,
    levels: Vec<IsvLevel>,
}

impl TcbInfo {
    pub(super) fn parse(
        collateral: &Collateral,
        signer: &Certificate,
        root: &Anchor,
        is_tdx: bool,
        now: u64,
    ) -> Result<Self, Fault> {
        let signature = &collateral.tcb_info_signature;
        let raw = signed(&collateral.tcb_info, signature, signer, root, Item::TcbInfo)?;
        Self::from_raw(raw, is_tdx, now)
    }

    fn from_raw(raw: RawTcbInfo, is_tdx: bool, now: u64) -> Result<Self, Fault> {
        const ITEM: Item = Item::TcbInfo;
        if raw.id != if is_tdx { "TDX" } else { "SGX" } {
            return Err(Fault::new(ITEM, Problem::Mismatch("id")));
        }
        if raw.version != 3 {
            return Err(Fault::new(ITEM, Problem::Mismatch("version")));
        }
        let valid = current(&raw.issue_date, &raw.next_update, now, ITEM)?;
        let modules = bounded(raw.tdx_module_identities, ITEM)?.into_iter().map(|identity| {
            let levels = isv_levels(identity.tcb_levels, ITEM)?;
            Module::parse(&identity.module).map(|module| (identity.id, module, levels))
        });
        let levels = bounded(raw.tcb_levels, ITEM)?;
        let levels = levels.into_iter().map(|level| Level::parse(level, is_tdx));
        let mut levels: Vec<Level> = levels.collect::<Result<_, _>>()?;
        // The order of the file is not relied upon.
        levels.sort_by_key(|level| std::cmp::Reverse((level.sgx, level.pce_svn, level.tdx)));
        Ok(Self {
            fmspc: array(&raw.fmspc, ITEM)?,
            pce_id: array(&raw.pce_id, ITEM)?,
            evaluation_number: raw.tcb_evaluation_data_number,
            valid,
            module: raw.tdx_module.as_ref().map(Module::parse).transpose()?,
            modules: modules.collect::<Result<_, _>>()?,
            levels,
        })
    }

    pub(super) fn check_platform(&self, machine: &Platform) -> Result<(), Fault> {
        if self.fmspc != machine.fmspc {
            return Err(Fault::new(Item::TcbInfo, Problem::Mismatch("FMSPC")));
        }
        if self.pce_id != machine.pce_id {
            return Err(Fault::new(Item::TcbInfo, Problem::Mismatch("PCEID")));
        }
        Ok(())
    }

    /// Whether the TDX module is signed as it must be.
    pub(super) fn check_module(&self, report: &TdReport) -> Result<(), Fault> {
        let mismatch = |field| Fault::new(Item::Module, Problem::Mismatch(field));
        let missing = || Fault::new(Item::TcbInfo, Problem::Missing("the TDX module's identity"));
        let module = match self.identity_of(report.tee_tcb_svn[1])? {
            Some((_, module, _)) => module,
            None => self.module.as_ref().ok_or_else(missing)?,
        };
        if report.mr_signer_seam != module.mr_signer {
            return Err(mismatch("MRSIGNERSEAM"));
        }
        let masked = |at: usize| report.seam_attributes[at] & module.mask[at];
        let same = (0..8).all(|at| masked(at) == module.attributes[at]);
        match same && report.seam_attributes == [0; 8] {
            true => Ok(()),
            false => Err(mismatch("SEAMATTRIBUTES")),
        }
    }

    /// The identity of modules of this major version; version 0 has none of its own.
    fn identity_of(&self, major: u8) -> Result<Option<&ModuleIdentity>, Fault> {
        if major == 0 {
            return Ok(None);
        }
        let id = format!("TDX_{major:02X}");
        let found = self.modules.iter().find(|(name, ..)| *name == id);
        let missing = Fault::new(Item::TcbInfo, Problem::Missing("this TDX module's identity"));
        found.map(Some).ok_or(missing)
    }

    /// The level of the TDX module with these versions.
    pub(super) fn rate_module(&self, svn: &[u8; 16]) -> Result<Option<Rating>, Fault> {
        let Some((_, _, levels)) = self.identity_of(svn[1])? else { return Ok(None) };
        rate_isv(levels, svn[0].into(), Item::Module).map(Some)
    }

    /// The level of the platform, and of TDX's components where there are any.
    pub(super) fn rate_platform(
        &self,
        machine: &Platform,
        tdx: Option<&[u8; 16]>,
    ) -> Result<Rating, Fault> {
        let reached = |level: &&Level| shortfalls(level, machine, tdx).next().is_none();
        let level = self.levels.iter().find(reached);
        level
            .map(|level| level.rating.clone())
            .ok_or(Fault::new(Item::TcbInfo, Problem::Unsupported))
    }

    /// What keeps the platform from the highest level.
    pub(super) fn shortfalls(&self, machine: &Platform, body: &Body) -> Vec<Shortfall> {
        let tdx = match body {
            Body::Td(report) => Some(&report.tee_tcb_svn),
            Body::Enclave(_) => None,
        };
        let best = self.levels.iter().find(|level| level.rating.status != Status::Revoked);
        best.map_or_else(Vec::new, |best| shortfalls(best, machine, tdx).collect())
    }
}

/// Reads documents as if their signatures were right, for the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let _ = Collateral::parse(data);
    for is_tdx in [true, false] {
        if let Ok(raw) = document(data, Item::TcbInfo) {
            let info = TcbInfo::from_raw(raw, is_tdx, u64::MAX >> 20);
            assert!(info.is_err(), "no document is valid in such a far future");
        }
        let _ = document(data, Item::QeIdentity)
            .and_then(|raw| Identity::from_raw(raw, is_tdx, 1_788_220_800));
        let info = document(data, Item::TcbInfo)
            .and_then(|raw| TcbInfo::from_raw(raw, is_tdx, 1_788_220_800));
        if let Ok(info) = info {
            let ordered = info
                .levels
                .is_sorted_by_key(|level| std::cmp::Reverse((level.sgx, level.pce_svn, level.tdx)));
            assert!(ordered && info.levels.len() <= LEVELS_MAX);
        }
    }
}

/// The components that are below a level.
fn shortfalls(
    level: &Level,
    machine: &Platform,
    tdx: Option<&[u8; 16]>,
) -> impl Iterator<Item = Shortfall> {
    let name =
        |list: usize, index: usize| level.categories[list].get(index).cloned().unwrap_or_default();
    let mut all = Vec::new();
    for index in 0..COMPONENTS {
        let component = Component::Sgx(index as u8);
        all.push((component, name(0, index), machine.svn[index].into(), level.sgx[index].into()));
    }
    all.push((Component::Pce, "PCE".into(), machine.pce_svn, level.pce_svn));
    if let Some(tdx) = tdx {
        // From version 1 on the module's own version is rated by its identity.
        let first = if tdx[1] > 0 { 2 } else { 0 };
        for index in first..COMPONENTS {
            let component = Component::Tdx(index as u8);
            all.push((component, name(1, index), tdx[index].into(), level.tdx[index].into()));
        }
    }
    all.into_iter()
        .filter(|(_, _, has, needs)| has < needs)
        .map(|(component, category, has, needs)| Shortfall { component, category, has, needs })
}

impl Identity {
    pub(super) fn parse(
        collateral: &Collateral,
        signer: &Certificate,
        root: &Anchor,
        is_tdx: bool,
        now: u64,
    ) -> Result<Self, Fault> {
        let signature = &collateral.qe_identity_signature;
        let raw = signed(&collateral.qe_identity, signature, signer, root, Item::QeIdentity)?;
        Self::from_raw(raw, is_tdx, now)
    }

    fn from_raw(raw: RawIdentity, is_tdx: bool, now: u64) -> Result<Self, Fault> {
        const ITEM: Item = Item::QeIdentity;
        if raw.id != if is_tdx { "TD_QE" } else { "QE" } {
            return Err(Fault::new(ITEM, Problem::Mismatch("id")));
        }
        if raw.version != 2 {
            return Err(Fault::new(ITEM, Problem::Mismatch("version")));
        }
        let valid = current(&raw.issue_date, &raw.next_update, now, ITEM)?;
        let mut misc_select = [array(&raw.miscselect, ITEM)?, array(&raw.miscselect_mask, ITEM)?];
        // A number in the document, bytes in the report.
        misc_select.iter_mut().for_each(|bytes: &mut [u8; 4]| bytes.reverse());
        Ok(Self {
            evaluation_number: raw.tcb_evaluation_data_number,
            valid,
            misc_select,
            attributes: [array(&raw.attributes, ITEM)?, array(&raw.attributes_mask, ITEM)?],
            mr_signer: array(&raw.mrsigner, ITEM)?,
            isv_prod_id: raw.isvprodid,
            levels: isv_levels(raw.tcb_levels, ITEM)?,
        })
    }

    /// Whether the report is of this enclave, and its level.
    pub(super) fn rate(&self, report: &[u8; QE_REPORT_LEN]) -> Result<Rating, Fault> {
        let mismatch = |field| Err(Fault::new(Item::QeReport, Problem::Mismatch(field)));
        let [expected, mask] = &self.misc_select;
        if !masked(&report[16..20], mask, expected) {
            return mismatch("MISCSELECT");
        }
        let [expected, mask] = &self.attributes;
        if !masked(&report[48..64], mask, expected) || report[48] & 2 != 0 {
            return mismatch("ATTRIBUTES");
        }
        if report[128..160] != self.mr_signer {
            return mismatch("MRSIGNER");
        }
        if u16::from_le_bytes([report[256], report[257]]) != self.isv_prod_id {
            return mismatch("ISVPRODID");
        }
        let isv_svn = u16::from_le_bytes([report[258], report[259]]);
        rate_isv(&self.levels, isv_svn, Item::QeReport)
    }
}

fn masked(bytes: &[u8], mask: &[u8], expected: &[u8]) -> bool {
    bytes.iter().zip(mask).zip(expected).all(|((byte, mask), expected)| byte & mask == *expected)
}

impl Module {
    fn parse(raw: &RawModule) -> Result<Self, Fault> {
        Ok(Self {
            mr_signer: array(&raw.mrsigner, Item::TcbInfo)?,
            attributes: array(&raw.attributes, Item::TcbInfo)?,
            mask: array(&raw.attributes_mask, Item::TcbInfo)?,
        })
    }
}

impl Level {
    fn parse(raw: RawLevel, is_tdx: bool) -> Result<Self, Fault> {
        let svns = |components: &[RawComponent]| {
            let svns: Vec<u8> = components.iter().map(|component| component.svn).collect();
            <[u8; COMPONENTS]>::try_from(svns)
                .map_err(|_| Fault::malformed(Item::TcbInfo, "other than 16 components"))
        };
        let names = |components: &[RawComponent]| {
            components.iter().map(|component| component.category.clone()).collect()
        };
        let tdx = match is_tdx {
            true => svns(&raw.tcb.tdxtcbcomponents)?,
            false => [0; COMPONENTS],
        };
        Ok(Self {
            sgx: svns(&raw.tcb.sgxtcbcomponents)?,
            pce_svn: raw.tcb.pcesvn,
            tdx,
            categories: [names(&raw.tcb.sgxtcbcomponents), names(&raw.tcb.tdxtcbcomponents)],
            rating: rating(&raw.tcb_status, &raw.tcb_date, raw.advisory_ids, Item::TcbInfo)?,
        })
    }
}

fn isv_levels(raw: Vec<RawIsvLevel>, item: Item) -> Result<Vec<IsvLevel>, Fault> {
    let level = |level: RawIsvLevel| {
        let rating = rating(&level.tcb_status, &level.tcb_date, level.advisory_ids, item)?;
        Ok(IsvLevel { isv_svn: level.tcb.isvsvn, rating })
    };
    let mut levels: Vec<IsvLevel> =
        bounded(raw, item)?.into_iter().map(level).collect::<Result<_, _>>()?;
    levels.sort_by_key(|level| std::cmp::Reverse(level.isv_svn));
    Ok(levels)
}

fn rate_isv(levels: &[IsvLevel], isv_svn: u16, item: Item) -> Result<Rating, Fault> {
    let level = levels.iter().find(|level| level.isv_svn <= isv_svn);
    level.map(|level| level.rating.clone()).ok_or(Fault::new(item, Problem::Unsupported))
}

fn rating(status: &str, date: &str, advisories: Vec<String>, item: Item) -> Result<Rating, Fault> {
    let status =
        Status::of_document(status).ok_or(Fault::malformed(item, "a status that is not known"))?;
    Ok(Rating { status, date: timestamp(date, item)?, advisories })
}

/// A document whose signature is right.
fn signed<'a, T: Deserialize<'a>>(
    text: &'a [u8],
    signature: &[u8],
    signer: &Certificate,
    root: &Anchor,
    item: Item,
) -> Result<T, Fault> {
    signer.verify(root, Encoding::Fixed, text, signature, item)?;
    document(text, item)
}

/// From when until when a document counts, if now is within.
fn current(from: &str, until: &str, now: u64, item: Item) -> Result<[u64; 2], Fault> {
    let valid = [timestamp(from, item)?, timestamp(until, item)?];
    check_dates(valid, now, item)?;
    Ok(valid)
}

fn document<'a, T: Deserialize<'a>>(text: &'a [u8], item: Item) -> Result<T, Fault> {
    if text.len() > DOCUMENT_LEN_MAX {
        return Err(Fault::malformed(item, "more than 1 MiB"));
    }
    serde_json::from_slice(text).map_err(|_| Fault::malformed(item, "not the JSON of one"))
}

fn bounded<T>(items: Vec<T>, item: Item) -> Result<Vec<T>, Fault> {
    match items.len() <= LEVELS_MAX {
        true => Ok(items),
        false => Err(Fault::malformed(item, "too many levels")),
    }
}

fn array<const N: usize>(text: &str, item: Item) -> Result<[u8; N], Fault> {
    hex::unhex(text)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(Fault::malformed(item, "a field that is no hexadecimal of the right length"))
}

/// Seconds since 1970 of `2026-06-30T07:53:47Z` (RFC 3339, UTC only).
fn timestamp(text: &str, item: Item) -> Result<u64, Fault> {
    parse_timestamp(text).ok_or(Fault::malformed(item, "a date"))
}
