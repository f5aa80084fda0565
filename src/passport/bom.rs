//! The bill of materials of a model (CycloneDX 1.6, ML-BOM): what technical documentation by the EU's AI Act, annex IV,
//! asks of a model and this program knows.

use serde_json::{Value, json};

use crate::job::state::Member;
use crate::passport::Files;
use crate::passport::evaluation::Tested;
use crate::passport::training::Facts;
use protocol::dcap::date;
use protocol::hex;

/// The file's bytes: a model of so many parameters, these files, and what it finds on test images.
pub fn make(files: &Files, facts: &Facts, parameters: usize, tested: Option<&Tested>) -> Vec<u8> {
    let Facts { job, state, times, .. } = facts;
    let digest = hex(&job.digest());
    let properties = [
        ("hfl:parameters", parameters.to_string()),
        ("hfl:parameters-sha256", hex(&facts.parameters)),
        ("hfl:job", digest.clone()),
        ("hfl:steps", state.step.to_string()),
        ("hfl:tier", facts.tier.to_owned()),
        ("hfl:roster", hex(facts.roster.head())),
    ];
    let mut properties: Vec<Value> = properties.map(|(name, value)| property(name, &value)).into();
    properties.extend(state.receipt.as_ref().map(|r| property("hfl:receipts", &hex(&r.head()))));
    let mut metrics = Vec::new();
    metrics.extend(tested.map(|found| {
        let share = found.right as f64 / found.images.max(1) as f64;
        json!({"type": "accuracy", "value": format!("{share:.4}"), "slice": found.to_string()})
    }));
    let side = job.shape.side;
    let card = json!({
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "image classification",
            "architectureFamily": "residual network",
            "modelArchitecture": format!("{}, {} stem", job.model, job.stem),
            "datasets": datasets(facts),
            "inputs": [{"format": format!("{side} x {side} pixels, red, green, blue")}],
            "outputs": [{"format": format!("{} classes", job.classes.len())}],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "properties": properties,
    });
    let hashes: Vec<Value> = files
        .iter()
        .map(|(name, hash)| property(&format!("hfl:file-sha256:{name}"), &hex(hash)))
        .collect();
    let bom = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": serial(&facts.job.digest()),
        "version": 1,
        "metadata": {
            "timestamp": date(times[1]),
            "tools": {"components": [{
                "type": "application", "name": "hfl", "version": env!("CARGO_PKG_VERSION"),
            }]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": job.model.to_string(),
                "version": format!("step {}", state.step),
                "description": "trained by horizontal federated learning in Intel TDX guests",
                "modelCard": card,
                "properties": hashes,
            },
        },
        "components": [],
    });
    let mut text = serde_json::to_vec_pretty(&bom).expect("JSON");
    text.push(b'\n');
    text
}

/// What each worker trained on: never shown, known by a digest and by counts.
fn datasets(facts: &Facts) -> Vec<Value> {
    let members = facts.state.members.iter().enumerate();
    members
        .filter_map(|(worker, member)| {
            let Member { samples, data, classes, .. } = member.as_ref()?;
            let root = data.map_or("unknown".into(), |data| hex(&data));
            let mut counts =
                vec![property("samples", &samples.to_string()), property("merkle-root", &root)];
            let named = facts.job.classes.names().iter().zip(classes);
            counts.extend(
                named.map(|(name, count)| property(&format!("class:{name}"), &count.to_string())),
            );
            Some(json!({
                "type": "dataset",
                "name": format!("data of worker{worker}"),
                "classification": "confidential",
                "description": format!("{samples} pictures; Merkle root (RFC 6962, SHA-256) {root}"),
                "contents": {"properties": counts},
            }))
        })
        .collect()
}

fn property(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

/// A UUID (RFC 9562, version 8) of a job's digest: the same model has the same number.
fn serial(job: &[u8; 32]) -> String {
    let mut bytes: [u8; 16] = std::array::from_fn(|at| job[at]);
    (bytes[6], bytes[8]) = (bytes[6] & 0x0f | 0x80, bytes[8] & 0x3f | 0x80);
    let digits = hex(&bytes);
    let part = |from: usize, to: usize| &digits[from..to];
    format!(
        "urn:uuid:{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}
