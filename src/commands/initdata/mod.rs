//! `hfl initdata`: the document that ties image, command lines and the agent's policy to a pod's quote.
//!
//! Kata gives a pod's guest the document of the annotation `cc_init_data` and, under TDX, starts the guest
//! with the document's SHA-384 as MRCONFIGID; the guest refuses a document with another digest. So a policy
//! that pins MRCONFIGID pins what the host may start in the guest. A peer pod's machine on Azure has no such register:
//! its agent extends PCR 8 of the virtual TPM by the document's SHA-256. Format: version 0.1.0 of Trustee's
//! `kbs/docs/initdata.md`.

mod manifests;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use argh::FromArgs;
use base64ct::{Base64, Encoding};
use protocol::hex;
use ring::digest::{SHA256, digest};

use crate::failure::{Doing, Failure};
use crate::files::{read_bounded, renew};
use crate::report::print;
use crate::trust::gzip::gzip;
use crate::trust::initdata;
use manifests::{INDEX, MANIFESTS_LEN_MAX, Workload};

/// Tie image, command lines and the agent's policy of confidential pods to their quotes.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "initdata",
    example = "kubectl kustomize deploy/overlays/coco | {command_name} --patch deploy/overlays/coco/initdata.yaml",
    note = "Images must be named by digest. The value that is printed belongs into policies, as mr_config_id \
            with verify_mr_config_id on, or of sha256 among the pcrs of a set."
)]
pub struct InitdataArgs {
    /// what kubectl kustomize printed, - for stdin [-]
    #[argh(option, default = "PathBuf::from(\"-\")")]
    manifests: PathBuf,
    /// where the document goes [initdata.toml]
    #[argh(option, default = "PathBuf::from(\"initdata.toml\")")]
    out: PathBuf,
    /// where a kustomize patch with the annotation goes
    #[argh(option)]
    patch: Option<PathBuf>,
    /// settings of the guest's attestation agent (aa.toml), such as the address of a Trustee
    #[argh(option)]
    aa: Option<PathBuf>,
    /// settings of the guest's data hub (cdh.toml): registries, certificates, who signs images
    #[argh(option)]
    cdh: Option<PathBuf>,
    /// the digest that evidence has of the document: sha384, or sha256 for peer pods on Azure (PCR 8) [sha384]
    #[argh(option, default = "Algorithm::Sha384")]
    algorithm: Algorithm,
}

/// What the document says that it is measured by.
#[derive(Clone, Copy, Debug)]
enum Algorithm {
    Sha256,
    Sha384,
}

impl Algorithm {
    /// As documents and command lines have it.
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
        }
    }
}

impl FromStr for Algorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = [Self::Sha256, Self::Sha384].into_iter().find(|known| known.name() == text);
        named.ok_or_else(|| "expected sha256 or sha384".into())
    }
}

const POLICY: &str = include_str!("policy.rego");

const ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// What each document of ours begins with, up to the algorithm's name.
const DOCUMENT_START: &str = "version = \"0.1.0\"\nalgorithm = \"";

/// Annotations of a pod are 256 KiB at most, in base64.
const DOCUMENT_LEN_MAX: usize = 180 << 10;

/// Runs the command.
///
/// # Errors
/// When the manifests are not understood, an image has no digest, or a file cannot be read or written.
pub fn run(args: &InitdataArgs) -> Result<(), Failure> {
    let workloads = manifests::parse(&manifests_text(&args.manifests)?)?;
    let mut files = vec![("policy.rego", policy(&workloads)?)];
    for (name, path) in [("aa.toml", &args.aa), ("cdh.toml", &args.cdh)] {
        if let Some(path) = path {
            files.push((name, text(path)?));
        }
    }
    let document = document(args.algorithm, &files)?;
    let register = initdata::digest_of(document.as_bytes()).doing("the document")?;
    let annotation = Base64::encode_string(&gzip(document.as_bytes()));
    let has =
        |mark: &'static str| move |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(mark);
    renew(&args.out, document.as_bytes(), "initdata", has(DOCUMENT_START))?;
    if let Some(path) = &args.patch {
        renew(path, patch(&annotation).as_bytes(), "patch of initdata", has(ANNOTATION))?;
    }
    for workload in &workloads {
        print(&format!("{}: {} {}", workload.name, workload.image, workload.args.join(" ")))?;
    }
    match args.algorithm {
        Algorithm::Sha384 => print(&format!("mr_config_id {}", hex(&register))),
        Algorithm::Sha256 => print(&format!("pcr 8 {}", hex(&extended(&register[..32])))),
    }
}

/// A PCR that was never written to and then extended once.
fn extended(by: &[u8]) -> Vec<u8> {
    digest(&SHA256, &[&[0; 32], by].concat()).as_ref().to_vec()
}

fn manifests_text(path: &Path) -> Result<String, Failure> {
    if path != Path::new("-") {
        return text(path);
    }
    let mut text = String::new();
    let most = MANIFESTS_LEN_MAX as u64 + 1;
    std::io::stdin().lock().take(most).read_to_string(&mut text).doing("stdin")?;
    match text.len() > MANIFESTS_LEN_MAX {
        true => Err(Failure::new("stdin: more than 4 MiB of manifests")),
        false => Ok(text),
    }
}

fn text(path: &Path) -> Result<String, Failure> {
    let name = path.display();
    let bytes = read_bounded(path).doing(&name)?;
    let bytes = bytes.ok_or_else(|| Failure::new(format!("{name}: not there")))?;
    String::from_utf8(bytes).doing(&name)
}

/// The agent's policy for these workloads.
fn policy(workloads: &[Workload]) -> Result<String, Failure> {
    let image = &workloads[0].image;
    for workload in workloads {
        let digest = workload.image.split_once("@sha256:").map_or("", |(_, digest)| digest);
        if digest.len() != 64 || !digest.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            let (name, image) = (&workload.name, &workload.image);
            return Err(Failure::new(format!("{name}: image {image:?} has no digest"))
                .hint("kustomize edit set image hfl=registry.example/hfl@sha256:..."));
        }
        if workload.image != *image {
            return Err(Failure::new(format!("{}: another image than {image}", workload.name)));
        }
    }
    let commands: Vec<Vec<String>> = workloads
        .iter()
        .map(|workload| {
            let words = std::iter::once("/hfl").chain(workload.args.iter().map(String::as_str));
            words.map(expression).collect()
        })
        .collect();
    let mut mounts: Vec<&String> = workloads.iter().flat_map(|w| &w.mounts).collect();
    mounts.sort();
    mounts.dedup();
    if let Some(bad) =
        mounts.iter().find(|m| !m.starts_with('/') || m.as_str() == "/hfl" || m.as_str() == "/")
    {
        return Err(Failure::new(format!("mountPath {bad:?} hides the program")));
    }
    let mut devices: Vec<&String> = workloads.iter().flat_map(|w| &w.devices).collect();
    devices.sort();
    devices.dedup();
    if let Some(bad) = devices.iter().find(|device| !device.starts_with("/dev/hfl-")) {
        return Err(Failure::new(format!("devicePath {bad:?}, expected /dev/hfl-NAME"))
            .hint("a name that no device of the guest has"));
    }
    let json = |value| serde_json::to_string_pretty(&value).doing("policy");
    Ok(POLICY
        .replace("@IMAGE@", &serde_json::to_string(image).doing("policy")?)
        .replace("@COMMANDS@", &json(serde_json::json!(commands))?)
        .replace("@DESTINATIONS@", &json(serde_json::json!(mounts))?)
        .replace("@DEVICES@", &json(serde_json::json!(devices))?))
}

/// A word as a regular expression that matches nothing else; any number stands for `$(INDEX)`.
fn expression(word: &str) -> String {
    let mut out = String::from("^");
    for (at, part) in word.split(INDEX).enumerate() {
        if at > 0 {
            out.push_str("[0-9]{1,5}");
        }
        for c in part.chars() {
            if r"\.+*?()|[]{}^$".contains(c) {
                out.push('\\');
            }
            out.push(c);
        }
    }
    out.push('$');
    out
}

fn document(algorithm: Algorithm, files: &[(&str, String)]) -> Result<String, Failure> {
    let mut out = format!("{DOCUMENT_START}{}\"\n\n[data]\n", algorithm.name());
    for (name, text) in files {
        let odd = |c: char| c.is_control() && c != '\n' && c != '\t';
        if text.contains("'''") || text.ends_with('\'') || text.contains(odd) {
            return Err(Failure::new(format!("{name}: three quotes or control characters in it")));
        }
        out.push_str(&format!("\"{name}\" = '''\n{text}'''\n"));
    }
    match out.len() > DOCUMENT_LEN_MAX {
        true => Err(Failure::new(format!("{} bytes do not fit into an annotation", out.len()))),
        false => Ok(out),
    }
}

fn patch(annotation: &str) -> String {
    format!(
        "# Written by hfl initdata.\n- op: add\n  path: /spec/template/metadata/annotations/{ANNOTATION}\n  \
         value: {annotation}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(image: &str) -> Workload {
        let args = vec!["--role=worker$(INDEX)".into(), "--file=a.b".into()];
        let (mounts, devices) = (vec!["/data".into()], vec!["/dev/hfl-model".into()]);
        Workload { name: "w".into(), image: image.into(), args, mounts, devices }
    }

    #[test]
    fn the_policy_names_image_words_and_mounts() {
        let image = format!("r.example/hfl@sha256:{}", "0a".repeat(32));
        let text = policy(&[workload(&image)]).expect("policy");
        let expected = [
            image.as_str(),
            r#""^/hfl$""#,
            "worker[0-9]{1,5}$",
            r"a\\.b$",
            r#""/data""#,
            r#""/dev/hfl-model""#,
        ];
        for part in expected {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('@') || text.matches('@').count() == 1, "a hole is left");
    }

    #[test]
    fn images_without_a_digest_and_mounts_over_the_program_are_refused() {
        for image in ["hfl", "r/hfl:1", "r/hfl@sha256:00", "r/hfl@sha512:00"] {
            let error = policy(&[workload(image)]).expect_err(image).to_string();
            assert!(error.contains("no digest"), "{error}");
        }
        let mut over = workload(&format!("r/hfl@sha256:{}", "0a".repeat(32)));
        over.mounts.push("/hfl".into());
        assert!(policy(&[over]).expect_err("mount").to_string().contains("hides"));
        let mut other = workload(&format!("r/hfl@sha256:{}", "0a".repeat(32)));
        other.devices.push("/dev/tdx_guest".into());
        assert!(policy(&[other]).expect_err("device").to_string().contains("/dev/hfl-NAME"));
    }

    #[test]
    fn text_that_would_end_its_string_is_refused() {
        for text in ["a'''b", "a'", "a\u{7f}", "\r\n"] {
            let files = [("aa.toml", text.into())];
            assert!(document(Algorithm::Sha384, &files).is_err(), "{text:?}");
        }
    }
}
