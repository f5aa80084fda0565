//! The statement of `training.sigstore.json`: SLSA provenance of a model, with the job as what was asked for.

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};

use crate::job::Job;
use crate::job::receipt::{Hash, Receipt};
use crate::job::state::{Member, State};
use crate::passport::{Files, described, sha256, statement, subjects};
use protocol::dcap::date;
use protocol::{Roster, TdReport, hex, unhex};

/// The type of its predicate.
const KIND: &str = "https://slsa.dev/provenance/v1";
/// What a training by this program is: the external parameters are a job.
const BUILD_TYPE: &str = "urn:hfl:training:v1";
/// Before the MRTD of the TD that made the model.
const BUILDER: &str = "urn:hfl:td:";

/// What is known of a training beside its job.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The job.
    pub job: &'a Job,
    /// The training as it stands.
    pub state: &'a State,
    /// SHA-256 of its parameters.
    pub parameters: Hash,
    /// SHA-256 of the parameters that it began with.
    pub initial: Hash,
    /// Tier of instructions of ps0.
    pub tier: &'a str,
    /// SHA-256 of the program, if it could be read.
    pub binary: Option<Hash>,
    /// ps0's own TD.
    pub td: Option<TdReport>,
    /// Everybody.
    pub roster: &'a Roster,
    /// When it began and when this is written, in seconds since 1970.
    pub times: [u64; 2],
}

/// The statement about these files.
pub fn make(files: &Files, facts: &Facts) -> Value {
    let Facts { job, state, parameters, tier, td, roster, times, .. } = facts;
    let td = td.map_or("unknown".into(), |td| hex(&td.mr_td));
    let definition = json!({
        "buildType": BUILD_TYPE,
        "externalParameters": {"job": job},
        "internalParameters": {
            "parameters": {"sha256": hex(parameters)},
            "step": state.step,
            "steps": state.steps,
            "tier": tier,
        },
        "resolvedDependencies": dependencies(facts),
    });
    let mut byproducts = vec![json!({
        "name": "roster",
        "digest": {"sha256": hex(roster.head())},
        "annotations": {"entries": roster.entries().len()},
    })];
    byproducts.extend(state.receipt.as_ref().map(|receipt| {
        json!({
            "name": "receipts",
            "digest": {"sha256": hex(&receipt.head())},
            "content": Base64::encode_string(&receipt.encode()),
            "annotations": {"step": receipt.step},
        })
    }));
    let details = json!({
        "builder": {
            "id": format!("{BUILDER}{td}"),
            "version": {"hfl": env!("CARGO_PKG_VERSION")},
        },
        "metadata": {
            "invocationId": hex(&job.digest()),
            "startedOn": date(times[0]),
            "finishedOn": date(times[1]),
        },
        "byproducts": byproducts,
    });
    let predicate = json!({"buildDefinition": definition, "runDetails": details});
    statement(subjects(files), KIND, predicate)
}

/// All that the parameters depend on, but for the job.
fn dependencies(facts: &Facts) -> Vec<Value> {
    let mut all = Vec::new();
    all.extend(facts.binary.as_ref().map(|hash| described("hfl", hash)));
    // Zeros: nothing was measured there.
    all.extend(facts.td.filter(|td| td.mr_config_id != [0; 48]).map(
        |td| json!({"name": "initdata (MRCONFIGID)", "digest": {"sha384": hex(&td.mr_config_id)}}),
    ));
    all.push(described("initial parameters", &facts.initial));
    for (worker, member) in facts.state.members.iter().enumerate() {
        let Some(Member { samples, batches, data }) = member else { continue };
        let name = format!("data of worker{worker}");
        let mut data = described(&name, &data.unwrap_or_default());
        data["annotations"] =
            json!({"samples": samples, "batches": batches, "tree": "RFC 6962, over its records"});
        all.push(data);
    }
    all
}

/// What a statement says, as far as it can be compared with other things.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// The job.
    pub job: Job,
    /// Updates that the model had.
    pub step: u64,
    /// SHA-256 of the parameters.
    pub parameters: Hash,
    /// Head of the roster, and how many entries it had.
    pub roster: (Hash, u64),
    /// The last receipt.
    pub receipt: Option<Receipt>,
    /// MRTD of ps0's TD, in hexadecimal.
    pub td: String,
    /// When it began and ended.
    pub times: [String; 2],
    /// What it depends on: name, digest, samples.
    pub dependencies: Vec<(String, String, Option<u64>)>,
    /// Files that it is about.
    pub files: Files,
}

/// What a statement says; `None` when it is none that [`make`] makes.
pub fn read(found: &Value) -> Option<Said> {
    let text = |value: &Value, path: &str| Some(value.pointer(path)?.as_str()?.to_owned());
    let hash = |value: &Value, path: &str| -> Option<Hash> {
        unhex(value.pointer(path)?.as_str()?)?.try_into().ok()
    };
    let predicate = found.get("predicate")?;
    let definition = predicate.get("buildDefinition")?;
    let job = definition.pointer("/externalParameters/job")?;
    let job = Job::parse(&serde_json::to_vec(job).ok()?).ok()?;
    let file = |value: &Value| Some((text(value, "/name")?, hash(value, "/digest/sha256")?));
    let files: Files = found.get("subject")?.as_array()?.iter().map(file).collect::<Option<_>>()?;
    let dependency = |value: &Value| {
        let digest = text(value, "/digest/sha256").or_else(|| text(value, "/digest/sha384"))?;
        let samples = value.pointer("/annotations/samples").and_then(Value::as_u64);
        Some((text(value, "/name")?, digest, samples))
    };
    let dependencies = definition.get("resolvedDependencies")?.as_array()?;
    let details = predicate.get("runDetails")?;
    let receipt = match details.pointer("/byproducts/1/content") {
        None => None,
        Some(content) => {
            let receipt = Receipt::parse(&Base64::decode_vec(content.as_str()?).ok()?)?;
            (hash(details, "/byproducts/1/digest/sha256")? == receipt.head())
                .then_some(receipt)?
                .into()
        }
    };
    let kinds = [text(found, "/predicateType")?, text(definition, "/buildType")?];
    let invocation = hash(details, "/metadata/invocationId")?;
    if kinds != [KIND, BUILD_TYPE]
        || invocation != job.digest()
        || invocation != sha256(&job.encode())
    {
        return None;
    }
    Some(Said {
        step: definition.pointer("/internalParameters/step")?.as_u64()?,
        parameters: hash(definition, "/internalParameters/parameters/sha256")?,
        roster: (
            hash(details, "/byproducts/0/digest/sha256")?,
            details.pointer("/byproducts/0/annotations/entries")?.as_u64()?,
        ),
        receipt,
        td: text(details, "/builder/id")?.strip_prefix(BUILDER)?.to_owned(),
        times: [text(details, "/metadata/startedOn")?, text(details, "/metadata/finishedOn")?],
        dependencies: dependencies.iter().map(dependency).collect::<Option<_>>()?,
        files,
        job,
    })
}
