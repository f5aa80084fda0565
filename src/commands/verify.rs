//! `hfl verify`: a quote and its collateral, judged offline and explained.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use argh::FromArgs;
use base64ct::{Base64, Encoding};
use protocol::dcap::{self, Anchor, Collateral, Fault, Rating, Shortcoming, Status, Verdict};
use protocol::{
    Body, CertificateEvidence, Evidence, Pccs, Pcrs, Policy, Quote, QuoteError, Rejection,
    TdReport, Vtpm, is_simulated,
};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::commands::measure::explain;
use crate::failure::{Doing, Failure};
use crate::files::renew;
use crate::report::print;
use crate::trust::initdata;
use crate::trust::policy::{read, read_policy};
use crate::trust::{Attestation, Source, TrustOptions};
use protocol::hex;

/// Judge a quote offline: signatures, certificates, revocation, patch levels, rules.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "verify",
    example = "{command_name} --quote quote.bin --collateral collateral.json",
    note = "Exit code 0 when the quote is accepted, 1 when it is refused."
)]
pub struct VerifyArgs {
    /// file with the quote
    #[argh(option)]
    quote: Option<PathBuf>,
    /// file with a certificate (PEM or DER) whose quote is to be judged, and its bond to the key
    #[argh(option)]
    certificate: Option<PathBuf>,
    /// collateral: file (one JSON object, as dcap-qvl writes it), or https://PCCS:8081[#SHA256] [Intel's]
    #[argh(option, default = "Source::intel()")]
    collateral: Source,
    /// file to write the collateral to, for later without a network
    #[argh(option)]
    fetch: Option<PathBuf>,
    /// time to judge at, RFC 3339 in UTC or seconds since 1970 [now]
    #[argh(option, from_str_fn(instant))]
    at: Option<u64>,
    /// root certificate in DER, instead of Intel's: for tests only
    #[argh(option)]
    root: Option<PathBuf>,
    /// policy file that platform and TD must satisfy [up to date, no debug mode, any measurement]
    #[argh(option)]
    policy: Option<PathBuf>,
    /// a status to accept instead of the policy's, as often as needed
    #[argh(option, from_str_fn(status))]
    accept: Vec<Status>,
    /// one JSON object on stdout
    #[argh(switch)]
    json: bool,
    /// every measurement, field by field
    #[argh(switch)]
    explain: bool,
}

/// Show what a quote of this TD or in a file says, without judging it.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "quote",
    example = "{command_name} --out quote.bin",
    example = "{command_name} --quote quote.bin --policy-template"
)]
pub struct QuoteArgs {
    /// file with the quote [a quote of this TD over zeros]
    #[argh(option)]
    quote: Option<PathBuf>,
    /// source of evidence: auto, tdx, coco, azure or sim [auto]
    #[argh(option, default = "Attestation::Auto")]
    attestation: Attestation,
    /// file to write the quote to
    #[argh(option)]
    out: Option<PathBuf>,
    /// print a policy file that accepts TDs like this one
    #[argh(switch)]
    policy_template: bool,
    /// a pod's initdata (the document, or its annotation): print the MRCONFIGID of such a pod; the template takes it
    #[argh(option)]
    init_data: Option<PathBuf>,
    /// event log of the TD (/sys/firmware/acpi/tables/data/CCEL): replay it, name events behind what differs
    #[argh(option)]
    event_log: Option<PathBuf>,
    /// policy whose registers the event log is to explain
    #[argh(option)]
    policy: Option<PathBuf>,
    /// one JSON object on stdout
    #[argh(switch)]
    json: bool,
}

/// What to do about a quote whose platform has no certificate in it.
const UNREGISTERED: &str = "register the host's platform with its PCCS (PCKIDRetrievalTool, mpa_manage), restart its \
                            quote service (qgsd), and get a new quote";

/// What comes of it.
struct Outcome {
    verdict: Option<Verdict>,
    /// Measurements of a guest with a virtual TPM.
    pcrs: Option<Pcrs>,
    /// Code and text of a refusal, and what to do.
    refused: Option<(String, String, &'static str)>,
}

/// Runs the command.
///
/// # Errors
/// When files cannot be read, and when the quote is refused.
pub fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let (quote, evidence, name) = match (&args.quote, &args.certificate) {
        (Some(path), None) => (read(path)?, None, path.display()),
        (None, Some(path)) => {
            let evidence = certificate(path)?;
            (evidence.quote.clone(), Some(evidence), path.display())
        }
        _ => {
            return Err(
                Failure::usage("nothing to judge").hint("--quote FILE, or --certificate FILE")
            );
        }
    };
    let parsed = Quote::parse(Evidence::quote_bytes(&quote));
    if parsed.is_ok_and(|quote| is_simulated(&quote)) {
        log::warn!("SIMULATED evidence, of the public test root: anybody can make it");
    }
    let root = match &args.root {
        None => Anchor::default(),
        Some(path) => {
            log::warn!("TEST ROOT {}: says nothing about real platforms", path.display());
            let root = digest(&SHA256, &read(path)?);
            Anchor::new(root.as_ref().try_into().expect("32 bytes"))
        }
    };
    let now = args.at.unwrap_or_else(now);
    let collateral = collateral_of(&args.collateral, &quote, &root, now)?;
    if let Some(path) = &args.fetch {
        let is_one = |bytes: &[u8]| Collateral::parse(bytes).is_ok();
        renew(path, &collateral, "collateral", is_one)?;
        log::info!("the collateral is in {}", path.display());
    }
    let mut policy = match &args.policy {
        Some(path) => read_policy(path)?,
        None => Policy::default(),
    };
    if !args.accept.is_empty() {
        policy.rules.accepted.clone_from(&args.accept);
    }
    if let Ok(Evidence { quote, .. }) = Evidence::parse(&quote)
        && quote.td().is_ok_and(|report| report.mr_config_id != [0; 48])
        && policy.leaves_config_open()
    {
        log::warn!(
            "the quote is of a pod, or of another TD with a configuration (MRCONFIGID), which the policy leaves \
             open: ANY image in the same guest meets it"
        );
    }
    let mut outcome = judge(&quote, &collateral, &root, now, &policy);
    if let (Some(evidence), None) = (&evidence, &outcome.refused) {
        outcome.refused = unbound(evidence);
    }
    let text = match args.json {
        true => as_json(&outcome).to_string(),
        false => as_text(&outcome, args.explain),
    };
    print(text.trim_end())?;
    match outcome.refused {
        None => Ok(()),
        Some((code, ..)) => Err(Failure::new(format!("{name}: refused: {code}"))),
    }
}

/// The evidence in a certificate.
fn certificate(path: &Path) -> Result<CertificateEvidence, Failure> {
    let bytes = read(path)?;
    let der = match bytes.starts_with(b"-----BEGIN") {
        true => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let body = text.split("-----").nth(2).unwrap_or_default();
            let digits: String = body.split_whitespace().collect();
            Base64::decode_vec(&digits).doing(format!("{}: PEM", path.display()))?
        }
        false => bytes,
    };
    let evidence = CertificateEvidence::parse(&der);
    let evidence = evidence.map_err(|why| format!("refused: {}: {why}", why.code()));
    let evidence = evidence.doing(path.display())?;
    log::info!("{}: evidence in the form of {}", path.display(), evidence.form.name());
    Ok(evidence)
}

/// The refusal of a quote that is about another key.
fn unbound(evidence: &CertificateEvidence) -> Option<(String, String, &'static str)> {
    let bound = Evidence::parse(&evidence.quote).ok()?.is_over(&evidence.report_data);
    let why = match bound {
        Ok(true) => return None,
        Ok(false) => Rejection::ReportData,
        Err(why) => why,
    };
    let advice = "the certificate took a quote of another";
    Some((why.code().into(), why.to_string(), advice))
}

/// Collateral as a file has it, or as a service gives it for this quote.
fn collateral_of(
    source: &Source,
    quote: &[u8],
    root: &Anchor,
    now: u64,
) -> Result<Vec<u8>, Failure> {
    let (address, authority) = match source {
        Source::File(path) => return read(path),
        Source::Service(address, authority) => (address, authority),
    };
    let origin = Evidence::parse(quote)
        .map_err(|error| error.to_string())
        .and_then(|evidence| {
            dcap::origin(&evidence.quote, root, now).map_err(|fault| fault.to_string())
        })
        .doing("no collateral is asked for")?;
    let fetched = Pccs::new(address, authority).doing(address)?.fetch(&origin);
    let fetched = fetched.map_err(|error| format!("[{}] {error}", error.code()));
    Ok(fetched.doing(address)?.encode().into_bytes())
}

/// Shows a quote's measurements, or a policy made of them.
///
/// # Errors
/// When the file is no quote.
pub fn show(args: &QuoteArgs) -> Result<(), Failure> {
    let config_id = args.init_data.as_deref().map(config_of).transpose()?;
    let is_asked = args.quote.is_some() || args.out.is_some() || args.policy_template;
    if let Some(value) = config_id.filter(|_| !is_asked) {
        return print(&format!("mr_config_id {}", hex(&value)));
    }
    let (bytes, name) = match &args.quote {
        Some(path) => (read(path)?, path.display().to_string()),
        None => {
            let trust = TrustOptions {
                attestation: args.attestation,
                collateral: Vec::new(),
                policy: None,
                identity: None,
                sim_image: TrustOptions::SIM_IMAGE.into(),
            };
            let quote = trust.attester()?.quote(&[0; 64]).doing("quote of this TD")?;
            (quote, "quote of this TD".into())
        }
    };
    let Evidence { quote, vtpm } = Evidence::parse(&bytes).doing(name)?;
    let pcrs = vtpm.as_ref().map(Vtpm::pcrs);
    if let Some(path) = &args.out {
        renew(path, &bytes, "evidence", |bytes: &[u8]| Evidence::parse(bytes).is_ok())?;
    }
    if let Some(log) = &args.event_log {
        return explain(log, quote.td().doing("an event log is a TD's")?, args.policy.as_deref());
    }
    if args.policy_template {
        let report = quote.td().doing("a policy is for TDs")?;
        return print(&Policy::template(&configured(report, config_id), pcrs));
    }
    if let (Some(value), Ok(report)) = (config_id, quote.td())
        && value != report.mr_config_id
    {
        log::warn!("MRCONFIGID of that document is {}, the quote has another", hex(&value));
    }
    let fields = measurements(&quote.body, pcrs);
    if args.json {
        let mut object: serde_json::Map<_, _> = fields.into_iter().collect();
        object.insert("version".into(), quote.version.into());
        return print(&Value::Object(object).to_string());
    }
    let line = |(name, value): &(String, Value)| {
        format!("{name:<16} {}", value.as_str().unwrap_or_default())
    };
    print(&fields.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// The MRCONFIGID of pods with the document in a file.
fn config_of(path: &Path) -> Result<[u8; 48], Failure> {
    initdata::config_id(&read(path)?).doing(path.display())
}

/// The TD that a policy is made for: with the MRCONFIGID of a document, if there is one. A policy without any is
/// met by every container in the same guest, which is said loudly.
fn configured(report: &TdReport, config_id: Option<[u8; 48]>) -> TdReport {
    let mut report = *report;
    if let Some(value) = config_id {
        if value != report.mr_config_id {
            log::warn!("the quote has another MRCONFIGID; the policy has that of --init-data");
        }
        report.mr_config_id = value;
    }
    if report.mr_config_id == [0; 48] {
        log::warn!(
            "MRCONFIGID is zero: in a confidential pod NOTHING in this policy says which image runs with which \
             arguments. Start the pod with initdata (hfl initdata), or give it here (--init-data FILE)"
        );
    }
    report
}

fn judge(quote: &[u8], collateral: &[u8], root: &Anchor, now: u64, policy: &Policy) -> Outcome {
    let damaged = "the evidence is damaged or forged: get a new quote";
    let Evidence { quote, vtpm } = match Evidence::parse(quote) {
        Ok(evidence) => evidence,
        Err(error) => {
            let (code, advice) = match error {
                QuoteError::NoPckCertificate { .. } => ("quote-without-pck", UNREGISTERED),
                _ => ("quote-malformed", damaged),
            };
            let refused = Some((code.into(), error.to_string(), advice));
            return Outcome { verdict: None, pcrs: None, refused };
        }
    };
    let pcrs = vtpm.as_ref().map(|vtpm| *vtpm.pcrs());
    let verified = Collateral::parse(collateral)
        .and_then(|collateral| dcap::verify(&quote, &collateral, root, now));
    match verified {
        Err(fault) => Outcome { verdict: None, pcrs, refused: Some(explained(&fault)) },
        Ok(verdict) => {
            let td = match &verdict.body {
                Body::Td(report) => vtpm
                    .as_ref()
                    .map_or(Ok(()), |vtpm| vtpm.verify(&report.report_data).map(drop))
                    .and_then(|()| policy.check(report, pcrs.as_ref(), None, now)),
                // Measurements of TDs are not those of enclaves.
                Body::Enclave(_) if policy.accepts_anything() => Ok(()),
                Body::Enclave(_) => Err(Rejection::Platform("an enclave, the policy is for TDs")),
            };
            let refused = td
                .and_then(|()| policy.check_platform(&verdict, None, now))
                .err()
                .map(|why| (why.code().to_owned(), why.to_string(), advice(&why)));
            Outcome { verdict: Some(verdict), pcrs, refused }
        }
    }
}

fn advice(why: &Rejection) -> &'static str {
    match why {
        Rejection::Rules(Shortcoming::Status(
            Status::TDRelaunchAdvised | Status::TDRelaunchAdvisedConfigurationNeeded,
        )) => "launch the TD again: its platform was patched since",
        Rejection::Rules(Shortcoming::Status(_)) => {
            "patch the platform, or accept the status (tcb_statuses of the policy, --accept)"
        }
        Rejection::Rules(_) => "launch the TD with other attributes",
        Rejection::Vtpm(_) => "the evidence is damaged or forged: get it again",
        Rejection::Measurement(_) | Rejection::Pcr(_) => {
            "if the new image is meant to run, add it to the policy (hfl quote --policy-template)"
        }
        _ => "if that is meant to be, change the policy",
    }
}

fn explained(fault: &Fault) -> (String, String, &'static str) {
    (fault.code(), fault.to_string(), fault.advice())
}

fn as_json(outcome: &Outcome) -> Value {
    let mut object = json!({
        "verdict": if outcome.refused.is_none() { "accepted" } else { "refused" },
        "code": outcome.refused.as_ref().map(|(code, ..)| code),
        "reason": outcome.refused.as_ref().map(|(_, text, _)| text),
        "advice": outcome.refused.as_ref().map(|(.., advice)| advice),
        "status": outcome.verdict.as_ref().map(|verdict| verdict.status.name()),
    });
    if let Some(verdict) = &outcome.verdict {
        let rating = |rating: &Rating| {
            json!({
                "status": rating.status.name(),
                "date": dcap::date(rating.date),
                "advisories": rating.advisories,
            })
        };
        let shortfalls = verdict.shortfalls.iter().map(|shortfall| {
            json!({
                "component": shortfall.component.to_string(),
                "category": shortfall.category,
                "has": shortfall.has,
                "needs": shortfall.needs,
            })
        });
        let shown = measurements(&verdict.body, outcome.pcrs.as_ref());
        let details = json!({
            "launch": verdict.launch.name(),
            "current": verdict.current.map(Status::name),
            "platform": rating(&verdict.platform),
            "module": verdict.module.as_ref().map(rating),
            "qe": rating(&verdict.qe),
            "tcb_date": dcap::date(verdict.tcb_date),
            "advisories": verdict.advisories,
            "tcb_evaluation_number": verdict.evaluation_number,
            "valid_from": dcap::date(verdict.valid[0]),
            "valid_until": dcap::date(verdict.valid[1]),
            "shortfalls": shortfalls.collect::<Vec<_>>(),
            "fmspc": hex(&verdict.machine.fmspc),
            "pce_id": hex(&verdict.machine.pce_id),
            "ppid": hex(&verdict.machine.ppid),
            "platform_instance_id": verdict.machine.instance_id.map(|id| hex(&id)),
            "measurements": shown.into_iter().collect::<serde_json::Map<_, _>>(),
        });
        let (Value::Object(object), Value::Object(details)) = (&mut object, details) else {
            unreachable!("both are objects");
        };
        object.extend(details);
    }
    object
}

/// Every field of the report, by name.
fn measurements(body: &Body, pcrs: Option<&Pcrs>) -> Vec<(String, Value)> {
    let fields: Vec<(&str, Vec<u8>)> = match body {
        Body::Enclave(report) => vec![
            ("mr_enclave", report[64..96].to_vec()),
            ("mr_signer", report[128..160].to_vec()),
            ("isv_prod_id", report[256..258].to_vec()),
            ("isv_svn", report[258..260].to_vec()),
            ("report_data", report[320..384].to_vec()),
        ],
        Body::Td(report) => td_fields(report),
    };
    let fields = fields.into_iter().map(|(name, bytes)| (name.to_owned(), hex(&bytes)));
    let pcrs = pcrs.into_iter().flatten().enumerate();
    let pcrs = pcrs.map(|(number, value)| (format!("pcr{number}"), hex(value)));
    fields.chain(pcrs).map(|(name, digits)| (name, Value::String(digits))).collect()
}

fn td_fields(report: &TdReport) -> Vec<(&'static str, Vec<u8>)> {
    let mut fields = vec![
        ("mr_td", report.mr_td.to_vec()),
        ("rt_mr0", report.rt_mr[0].to_vec()),
        ("rt_mr1", report.rt_mr[1].to_vec()),
        ("rt_mr2", report.rt_mr[2].to_vec()),
        ("rt_mr3", report.rt_mr[3].to_vec()),
        ("mr_config_id", report.mr_config_id.to_vec()),
        ("mr_owner", report.mr_owner.to_vec()),
        ("mr_owner_config", report.mr_owner_config.to_vec()),
        ("mr_seam", report.mr_seam.to_vec()),
        ("mr_signer_seam", report.mr_signer_seam.to_vec()),
        ("seam_attributes", report.seam_attributes.to_vec()),
        ("td_attributes", report.td_attributes.to_vec()),
        ("xfam", report.xfam.to_vec()),
        ("tee_tcb_svn", report.tee_tcb_svn.to_vec()),
        ("report_data", report.report_data.to_vec()),
    ];
    if let Some(v15) = &report.v15 {
        fields.push(("tee_tcb_svn_2", v15.tee_tcb_svn_2.to_vec()));
        fields.push(("mr_service_td", v15.mr_service_td.to_vec()));
    }
    fields
}

fn as_text(outcome: &Outcome, explain: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<11} {value}");
    };
    match &outcome.refused {
        None => line("verdict", "accepted".into()),
        Some((code, why, advice)) => {
            line("verdict", format!("refused ({code})"));
            line("reason", why.clone());
            line("do", (*advice).into());
        }
    }
    let Some(verdict) = &outcome.verdict else { return text };
    let rated = |rating: &Rating| {
        let advisories = match rating.advisories.is_empty() {
            true => String::new(),
            false => format!(": {}", escaped(&rating.advisories.join(", "))),
        };
        format!("{}, level of {}{advisories}", rating.status, dcap::date(rating.date))
    };
    line("status", verdict.status.to_string());
    if let Some(current) = verdict.current {
        line("", format!("at launch {}, now {current}", verdict.launch));
    }
    line("platform", rated(&verdict.platform));
    if let Some(module) = &verdict.module {
        line("TDX module", rated(module));
    }
    line("QE", rated(&verdict.qe));
    for shortfall in &verdict.shortfalls {
        line(
            "behind",
            format!(
                "{} {}: has {}, the newest level needs {}",
                shortfall.component,
                escaped(&shortfall.category),
                shortfall.has,
                shortfall.needs
            ),
        );
    }
    line(
        "collateral",
        format!(
            "evaluation {}, valid {} to {}",
            verdict.evaluation_number,
            dcap::date(verdict.valid[0]),
            dcap::date(verdict.valid[1])
        ),
    );
    line(
        "machine",
        format!("FMSPC {}, PPID {}", hex(&verdict.machine.fmspc), hex(&verdict.machine.ppid)),
    );
    let shown = measurements(&verdict.body, outcome.pcrs.as_ref());
    let count = if explain { shown.len() } else { 6.min(shown.len()) };
    for (name, value) in shown.into_iter().take(count) {
        line(&name, value.as_str().unwrap_or_default().to_owned());
    }
    text
}

/// What a document supplied, safe to print.
fn escaped(text: &str) -> String {
    text.escape_default().to_string()
}

/// A time as options give it.
pub(crate) fn instant(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .or_else(|| dcap::parse_timestamp(text))
        .ok_or_else(|| "expected 2026-01-31T00:00:00Z or seconds since 1970".into())
}

fn status(text: &str) -> Result<Status, String> {
    let names: Vec<&str> = Status::ALL.map(Status::name).into();
    let found = Status::ALL.into_iter().find(|status| status.name() == text);
    found.ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
