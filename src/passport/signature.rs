//! The statement of `model.sig`: OpenSSF Model Signing 1.0, a digest for every file.

use ring::digest::{Context, SHA256};
use serde_json::{Value, json};

use crate::job::receipt::Hash;
use crate::passport::{ATTESTATION, EVALUATION, Files, SIGNATURE, TRAINING, described, statement};
use protocol::{hex, unhex};

/// The type of its predicate.
const KIND: &str = "https://model_signing/signature/v1.0";
/// The name of what is signed: verifiers do not look at it.
const NAME: &str = "model";

/// The statement over these files; what is in `ignored` may be there too, and is nobody's word.
pub fn make(files: &Files, ignored: &[String]) -> Value {
    let resources: Vec<Value> = files
        .iter()
        .map(|(name, hash)| json!({"name": name, "algorithm": "sha256", "digest": hex(hash)}))
        .collect();
    let own = [SIGNATURE, TRAINING, ATTESTATION, EVALUATION].map(str::to_owned);
    let ignored: Vec<&String> = own.iter().chain(ignored).collect();
    let serialization = json!({
        "method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": ignored
    });
    let predicate = json!({"serialization": serialization, "resources": resources});
    statement(vec![described(NAME, &root(files))], KIND, predicate)
}

/// The files of a statement, and what it ignores; `None` when it is none that [`make`] makes.
pub fn read(found: &Value) -> Option<(Files, Vec<String>)> {
    let predicate = found.get("predicate")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let resource = |value: &Value| {
        let hash = unhex(value.get("digest")?.as_str()?)?.try_into().ok()?;
        Some((text(value.get("name")?)?, hash))
    };
    let files: Files =
        predicate.get("resources")?.as_array()?.iter().map(resource).collect::<Option<_>>()?;
    let ignored = predicate.get("serialization")?.get("ignore_paths")?.as_array()?;
    let ignored: Vec<String> = ignored.iter().map(text).collect::<Option<_>>()?;
    let own = ignored.iter().skip(4).cloned().collect::<Vec<String>>();
    (make(&files, &own) == *found).then_some((files, ignored))
}

/// The digest over all digests, in the order of names.
fn root(files: &Files) -> Hash {
    let mut context = Context::new(&SHA256);
    files.values().for_each(|hash| context.update(hash));
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}
