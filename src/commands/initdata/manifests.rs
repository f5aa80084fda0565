//! What `kubectl kustomize` prints, as far as initdata needs it: images, command lines, mounts.
//!
//! Kustomize writes YAML in one canonical form: block style, sorted keys, fixed indentation. Only that form
//! is read, line by line; whatever looks different is refused, never guessed.

use std::collections::BTreeMap;

use crate::failure::Failure;

/// A container of a Job or a Deployment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Workload {
    /// Of the Job or Deployment.
    pub(super) name: String,
    /// As the pod names it.
    pub(super) image: String,
    /// Arguments, with the job's settings in place; `$(INDEX)` is still there.
    pub(super) args: Vec<String>,
    /// Where its volumes appear.
    pub(super) mounts: Vec<String>,
    /// Where its block devices appear.
    pub(super) devices: Vec<String>,
}

/// Most bytes of manifests, which are parsed whole; an overlay of ours renders to 30 KB.
pub(super) const MANIFESTS_LEN_MAX: usize = 4 << 20;

/// The variable that differs between the pods of an indexed job.
pub(super) const INDEX: &str = "$(INDEX)";

/// Every Job and Deployment in `text`.
///
/// # Errors
/// When there is none, or something is written in a way that is not understood.
pub(super) fn parse(text: &str) -> Result<Vec<Workload>, Failure> {
    let documents: Vec<Vec<&str>> = text
        .split("\n---\n")
        .map(|document| document.lines().filter(|line| !line.starts_with('#')).collect())
        .collect();
    let kind = |document: &[&str], kinds: &[&str]| {
        document.iter().any(|line| line.strip_prefix("kind: ").is_some_and(|k| kinds.contains(&k)))
    };
    let mut settings = BTreeMap::new();
    for document in documents.iter().filter(|document| kind(document, &["ConfigMap"])) {
        settings.insert(name(document)?, data(document)?);
    }
    let workloads: Result<Vec<_>, _> = documents
        .iter()
        .filter(|document| kind(document, &["Job", "Deployment"]))
        .map(|document| workload(document, &settings))
        .collect();
    match workloads {
        Ok(workloads) if workloads.is_empty() => {
            Err(Failure::new("manifests: neither a Job nor a Deployment in them")
                .hint("kubectl kustomize deploy/overlays/coco | hfl initdata"))
        }
        workloads => workloads,
    }
}

type Settings = BTreeMap<String, BTreeMap<String, String>>;

fn workload(document: &[&str], settings: &Settings) -> Result<Workload, Failure> {
    let name = name(document)?;
    let one = |key: &str| match &values(document, key)?[..] {
        [value] => Ok(value.clone()),
        found => Err(Failure::new(format!(
            "manifests: {name} has {} lines of {key:?}, expected one container and nothing else",
            found.len()
        ))),
    };
    let image = one("image: ")?;
    let mut known = BTreeMap::new();
    for (at, line) in document.iter().enumerate() {
        if line.trim_start().trim_start_matches("- ") == "configMapRef:" {
            let next = document.get(at + 1).map_or("", |line| line.trim());
            let map = next.strip_prefix("name: ").and_then(|name| settings.get(name));
            known.extend(map.ok_or_else(|| odd(&name, "configMapRef", next))?.clone());
        }
    }
    let args = list(document, "args:")?;
    if args.is_empty() {
        return Err(Failure::new(format!("manifests: {name} has no args")));
    }
    let args: Result<_, _> = args.iter().map(|word| expand(&name, word, &known)).collect();
    let [mounts, devices] = ["mountPath: ", "devicePath: "].map(|key| values(document, key));
    Ok(Workload { image, args: args?, mounts: mounts?, devices: devices?, name })
}

/// `$(NAME)` replaced, as the kubelet does it.
fn expand(workload: &str, word: &str, known: &BTreeMap<String, String>) -> Result<String, Failure> {
    let mut out = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once("$(") {
        let (variable, after) = after.split_once(')').ok_or_else(|| odd(workload, "args", word))?;
        out.push_str(before);
        match known.get(variable) {
            Some(value) => out.push_str(value),
            None if INDEX == format!("$({variable})") => out.push_str(INDEX),
            None => {
                return Err(Failure::new(format!(
                    "manifests: {workload}: {word}: nothing sets {variable}"
                )));
            }
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn name(document: &[&str]) -> Result<String, Failure> {
    let mut lines = document.iter().skip_while(|line| **line != "metadata:").skip(1);
    let inside = lines.by_ref().take_while(|line| line.starts_with(' '));
    let found = inside.filter_map(|line| line.strip_prefix("  name: ")).next();
    found.map(Into::into).ok_or_else(|| Failure::new("manifests: a document without metadata.name"))
}

/// `data:` of a ConfigMap: entries of one line; longer ones are files and no settings.
fn data(document: &[&str]) -> Result<BTreeMap<String, String>, Failure> {
    let lines = document.iter().skip_while(|line| **line != "data:").skip(1);
    let inside = lines.take_while(|line| line.starts_with(' ') || line.is_empty());
    inside
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.trim().split_once(": "))
        .filter(|(_, value)| !value.starts_with('|') && !value.starts_with('>'))
        .map(|(key, value)| Ok((key.into(), scalar(key, value)?)))
        .collect()
}

/// Every value of a key, wherever it is.
fn values(document: &[&str], key: &str) -> Result<Vec<String>, Failure> {
    let lines = document.iter().map(|line| line.trim_start().trim_start_matches("- "));
    lines.filter_map(|line| line.strip_prefix(key)).map(|value| scalar(key, value)).collect()
}

/// The one list of words under a key.
fn list(document: &[&str], key: &str) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for (at, line) in document.iter().enumerate() {
        if line.trim_start().trim_start_matches("- ") != key {
            continue;
        }
        if !found.is_empty() {
            return Err(odd("a workload", key, "a second list"));
        }
        let indent = line.len() - line.trim_start_matches([' ', '-']).len();
        let item = format!("{}- ", " ".repeat(indent));
        for line in &document[at + 1..] {
            match line.strip_prefix(&item) {
                Some(word) => found.push(scalar(key, word)?),
                None if line.starts_with(&" ".repeat(indent + 1)) => {
                    return Err(odd("a workload", key, line));
                }
                None => break,
            }
        }
    }
    Ok(found)
}

/// A plain or quoted word, on its own line.
fn scalar(key: &str, text: &str) -> Result<String, Failure> {
    let inner = ['"', '\'']
        .iter()
        .find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))
        .unwrap_or(text);
    let plain = inner.len() == text.len();
    let starts = |set: &str| text.chars().next().is_none_or(|first| set.contains(first));
    let strange = inner.contains(['"', '\'', '\\'])
        || plain && (starts("|>&*!%@`{}[],?#") || text.contains(": ") || text.contains(" #"));
    match strange || inner.chars().any(char::is_control) {
        true => Err(odd("a document", key, text)),
        false => Ok(inner.into()),
    }
}

fn odd(whose: &str, key: &str, text: &str) -> Failure {
    let text: String = text.chars().take(80).collect();
    Failure::new(format!("manifests: {whose}: {key} {text:?} is written in a way not understood"))
        .hint("the output of kubectl kustomize, as it is")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RENDERED: &str = "apiVersion: v1
data:
  PS0: ps0:60002
  WORKERS: \"2\"
  policy.json: |
    {\"a\": 1}
kind: ConfigMap
metadata:
  labels:
    name: other
  name: hfl-job
---
apiVersion: batch/v1
kind: Job
metadata:
  name: workers
spec:
  template:
    spec:
      containers:
      - args:
        - --role=worker$(INDEX)
        - --ps-hosts=$(PS0)
        - --workers=$(WORKERS)
        envFrom:
        - configMapRef:
            name: hfl-job
        image: r.example/hfl@sha256:00
        name: hfl
        volumeDevices:
        - devicePath: /dev/hfl-model
          name: model
        volumeMounts:
        - mountPath: /data
          name: data
        - mountPath: /model
          name: model
";

    #[test]
    fn what_kustomize_prints_is_read() {
        let found = parse(RENDERED).expect("manifests");
        let args = ["--role=worker$(INDEX)", "--ps-hosts=ps0:60002", "--workers=2"];
        let expected = Workload {
            name: "workers".into(),
            image: "r.example/hfl@sha256:00".into(),
            args: args.map(Into::into).into(),
            mounts: vec!["/data".into(), "/model".into()],
            devices: vec!["/dev/hfl-model".into()],
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn what_is_written_otherwise_is_refused() {
        let cases = [
            ("- --workers=$(WORKERS)", "- --workers=$(NOBODY)", "nothing sets NOBODY"),
            ("- --workers=$(WORKERS)", "- |-", "not understood"),
            ("- --workers=$(WORKERS)", "- &anchor x", "not understood"),
            ("- --workers=$(WORKERS)", "- \"a\\x41\"", "not understood"),
            ("- --workers=$(WORKERS)", "- a\n          b", "not understood"),
            ("        name: hfl\n", "      - image: other\n        name: hfl\n", "one container"),
            ("name: hfl-job\n        image", "name: missing\n        image", "not understood"),
            ("kind: Job", "kind: Pod", "neither"),
        ];
        for (from, to, said) in cases {
            assert!(RENDERED.contains(from), "{from}");
            let error = parse(&RENDERED.replace(from, to)).expect_err(to).to_string();
            assert!(error.contains(said), "{to}: {error}");
        }
    }
}
