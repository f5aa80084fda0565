//! The statement of `training.sigstore.json`: SLSA provenance of a model, with the job as what was asked for.

use base64ct::{Base64, Encoding};
use serde_json::{Map, Value, json};

use crate::job::Job;
use crate::job::receipt::{Hash, Receipt};
use crate::job::state::{Member, State};
use crate::passport::{Files, described, statement, subjects};
use protocol::dcap::{date, parse_timestamp};
use protocol::{Roster, TdReport, hex, unhex};

/// The type of its predicate.
const KIND: &str = "https://slsa.dev/provenance/v1";
/// What a training by this program is: the external parameters are a job.
const BUILD_TYPE: &str = "urn:hfl:training:v1";
/// Before the MRTD of the TD that made the model.
const BUILDER: &str = "urn:hfl:td:";
/// Names of what the parameters depend on, beside the data of each worker.
const BINARY: &str = "hfl";
const IMAGE: &str = "image";
const INITDATA: &str = "initdata (MRCONFIGID)";
const INITIAL: &str = "initial parameters";
const DATA: &str = "data of worker";
const TREE: &str = "RFC 6962, over its records";

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
    /// SHA-256 of the container image, if ps0 was told.
    pub image: Option<Hash>,
    /// ps0's own TD.
    pub td: Option<TdReport>,
    /// Everybody.
    pub roster: &'a Roster,
    /// When it began and when this is written, in seconds since 1970.
    pub times: [u64; 2],
}

/// The statement about these files.
pub fn make(files: &Files, facts: &Facts) -> Value {
    Said::new(files.clone(), facts).encode()
}

/// What a statement says.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// The job.
    pub job: Job,
    /// Tier of instructions of ps0.
    pub tier: String,
    /// Updates that the model had.
    pub step: u64,
    /// Updates of the whole job, if that was known.
    pub steps: Option<u64>,
    /// SHA-256 of the parameters.
    pub parameters: Hash,
    /// SHA-256 of the parameters that it began with.
    pub initial: Hash,
    /// SHA-256 of the program.
    pub binary: Option<Hash>,
    /// SHA-256 of the container image.
    pub image: Option<Hash>,
    /// MRCONFIGID of ps0's TD: the digest of its initdata.
    pub config_id: Option<[u8; 48]>,
    /// What each worker trained on.
    pub members: Vec<Option<Member>>,
    /// Head of the roster, and how many entries it had.
    pub roster: (Hash, u64),
    /// The last receipt.
    pub receipt: Option<Receipt>,
    /// MRTD of ps0's TD, in hexadecimal.
    pub td: String,
    /// Version of ps0's program.
    pub version: String,
    /// When it began and ended.
    pub times: [String; 2],
    /// Files that it is about.
    pub files: Files,
}

impl Said {
    fn new(files: Files, facts: &Facts) -> Self {
        let Facts { job, state, td, roster, .. } = facts;
        Self {
            job: (*job).clone(),
            tier: facts.tier.to_owned(),
            step: state.step,
            steps: state.steps,
            parameters: facts.parameters,
            initial: facts.initial,
            binary: facts.binary,
            image: facts.image,
            // Zeros: nothing was measured there.
            config_id: td.map(|td| td.mr_config_id).filter(|id| *id != [0; 48]),
            members: state.members.clone(),
            roster: (*roster.head(), roster.entries().len() as u64),
            receipt: state.receipt.clone(),
            td: td.map_or("unknown".into(), |td| hex(&td.mr_td)),
            version: env!("CARGO_PKG_VERSION").into(),
            times: facts.times.map(date),
            files,
        }
    }

    /// The statement that says it.
    fn encode(&self) -> Value {
        let Self { job, tier, step, steps, parameters, roster: (head, entries), td, .. } = self;
        let definition = json!({
            "buildType": BUILD_TYPE,
            "externalParameters": {"job": job},
            "internalParameters": {
                "parameters": {"sha256": hex(parameters)},
                "step": step,
                "steps": steps,
                "tier": tier,
            },
            "resolvedDependencies": self.dependencies(),
        });
        let mut byproducts = vec![json!({
            "name": "roster",
            "digest": {"sha256": hex(head)},
            "annotations": {"entries": entries},
        })];
        byproducts.extend(self.receipt.as_ref().map(|receipt| {
            json!({
                "name": "receipts",
                "digest": {"sha256": hex(&receipt.head())},
                "content": Base64::encode_string(&receipt.encode()),
                "annotations": {"step": receipt.step},
            })
        }));
        let [began, ended] = &self.times;
        let details = json!({
            "builder": {"id": format!("{BUILDER}{td}"), "version": {"hfl": self.version}},
            "metadata": {
                "invocationId": hex(&job.digest()), "startedOn": began, "finishedOn": ended,
            },
            "byproducts": byproducts,
        });
        let predicate = json!({"buildDefinition": definition, "runDetails": details});
        statement(subjects(&self.files), KIND, predicate)
    }

    /// All that the parameters depend on, but for the job.
    fn dependencies(&self) -> Vec<Value> {
        let mut all = Vec::new();
        all.extend(self.binary.as_ref().map(|hash| described(BINARY, hash)));
        all.extend(self.image.as_ref().map(|hash| described(IMAGE, hash)));
        all.extend(
            self.config_id.map(|id| json!({"name": INITDATA, "digest": {"sha384": hex(&id)}})),
        );
        all.push(described(INITIAL, &self.initial));
        for (worker, member) in self.members.iter().enumerate() {
            let Some(Member { samples, batches, data, classes }) = member else { continue };
            let mut data = described(&format!("{DATA}{worker}"), &data.unwrap_or_default());
            let mut notes = json!({"samples": samples, "batches": batches, "tree": TREE});
            if !classes.is_empty() {
                // In the order of the job's names of classes.
                notes["classes"] = json!(classes);
            }
            data["annotations"] = notes;
            all.push(data);
        }
        all
    }
}

/// What a statement says; `None` when it is none that [`make`] makes.
pub fn read(found: &Value) -> Option<Said> {
    let predicate = found.get("predicate")?;
    let definition = predicate.get("buildDefinition")?;
    let details = predicate.get("runDetails")?;
    let internal = definition.get("internalParameters")?;
    let job = definition.pointer("/externalParameters/job")?;
    let job = Job::parse(&serde_json::to_vec(job).ok()?).ok()?;
    let file = |value: &Value| Some((text(value, "/name")?, hash(value, "/digest/sha256")?));
    let receipt = match details.pointer("/byproducts/1/content") {
        None => None,
        Some(content) => Some(Receipt::parse(&Base64::decode_vec(content.as_str()?).ok()?)?),
    };
    let dependencies = definition.get("resolvedDependencies")?.as_array()?;
    let named = |name: &str| dependencies.iter().find(|one| one["name"] == name);
    let hash_of = |name: &str| hash(named(name)?, "/digest/sha256");
    let config_id = named(INITDATA).and_then(|one| unhex(one.pointer("/digest/sha384")?.as_str()?));
    let members = (0..job.workers).map(|worker| named(&format!("{DATA}{worker}")).map(member));
    let said = Said {
        tier: text(internal, "/tier")?,
        step: internal.get("step")?.as_u64()?,
        steps: internal.get("steps")?.as_u64(),
        parameters: hash(internal, "/parameters/sha256")?,
        initial: hash_of(INITIAL)?,
        binary: hash_of(BINARY),
        image: hash_of(IMAGE),
        config_id: config_id.and_then(|bytes| bytes.try_into().ok()),
        members: members.collect(),
        roster: (
            hash(details, "/byproducts/0/digest/sha256")?,
            details.pointer("/byproducts/0/annotations/entries")?.as_u64()?,
        ),
        receipt,
        td: text(details, "/builder/id")?.strip_prefix(BUILDER)?.to_owned(),
        version: text(details, "/builder/version/hfl")?,
        times: [time(details, "/metadata/startedOn")?, time(details, "/metadata/finishedOn")?],
        files: found.get("subject")?.as_array()?.iter().map(file).collect::<Option<_>>()?,
        job,
    };
    // Everything that was taken out of it makes it again: nothing else is in it.
    (said.encode() == *found).then_some(said)
}

fn text(value: &Value, path: &str) -> Option<String> {
    Some(value.pointer(path)?.as_str()?.to_owned())
}

/// A time as it is written: it is shown to people.
fn time(value: &Value, path: &str) -> Option<String> {
    let found = text(value, path)?;
    parse_timestamp(&found).filter(|seconds| date(*seconds) == found).map(|_| found)
}

fn hash(value: &Value, path: &str) -> Option<Hash> {
    unhex(value.pointer(path)?.as_str()?)?.try_into().ok()
}

/// What a worker trained on; what cannot be read is not what was written.
fn member(found: &Value) -> Member {
    let none = Map::new();
    let notes = found.get("annotations").and_then(Value::as_object).unwrap_or(&none);
    let number = |name: &str| notes.get(name).and_then(Value::as_u64).unwrap_or_default();
    let classes = notes.get("classes").and_then(Value::as_array);
    Member {
        samples: number("samples"),
        batches: number("batches"),
        // Zeros: it was not known.
        data: hash(found, "/digest/sha256").filter(|root| *root != [0; 32]),
        classes: classes.into_iter().flatten().filter_map(Value::as_u64).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_says_what_was_known_and_nothing_can_be_added_to_it() {
        let job = Job::default();
        let mut state = State::new(Vec::new(), 0, job.workers);
        (state.step, state.steps) = (7, Some(9));
        let counts = Member { samples: 9, batches: 2, data: Some([5; 32]), classes: vec![2, 7] };
        state.members[1] = Some(counts.clone());
        let shares = vec![None; usize::from(job.workers)];
        state.receipt = Some(Receipt::next(None, job.digest(), 7, 7, [3; 32], shares));
        let facts = Facts {
            job: &job,
            state: &state,
            parameters: [1; 32],
            initial: [2; 32],
            tier: "avx2",
            binary: Some([3; 32]),
            image: Some([4; 32]),
            td: None,
            roster: &Roster::default(),
            times: [1_800_000_000, 1_800_000_100],
        };
        let files = Files::from([("model.ckpt-data".to_owned(), [6; 32])]);
        let made = make(&files, &facts);
        let said = read(&made).expect("our own");
        assert_eq!((said.step, said.steps, said.image), (7, Some(9), Some([4; 32])));
        assert_eq!((&said.members[0], &said.members[1]), (&None, &Some(counts)));
        assert_eq!((said.receipt.as_ref(), &said.files), (state.receipt.as_ref(), &files));
        for at in [
            "",
            "/predicate",
            "/predicate/buildDefinition",
            "/predicate/runDetails",
            "/predicate/buildDefinition/externalParameters",
            "/predicate/buildDefinition/internalParameters",
            "/predicate/buildDefinition/resolvedDependencies/0",
            "/predicate/buildDefinition/resolvedDependencies/3/annotations",
            "/predicate/runDetails/byproducts/1/annotations",
            "/subject/0/digest",
        ] {
            let mut more = made.clone();
            more.pointer_mut(at).expect(at)["note"] = "trust me".into();
            assert!(read(&more).is_none(), "{at}");
        }
        let mut more = made.clone();
        let all = more.pointer_mut("/predicate/buildDefinition/resolvedDependencies");
        let all = all.and_then(Value::as_array_mut).expect("dependencies");
        all.push(all[0].clone());
        assert!(read(&more).is_none());
    }
}
