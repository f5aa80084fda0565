//! Volumes of cryptsetup and hostile headers, with the keys, plaintexts and verdicts that belong to them.
//!
//! A selection lies in `vectors/`; `HFL_LUKS_VECTORS` names a folder with more images of the same set.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use luks::disk::Disk;
use luks::ext4::FileSystem;
use luks::{Error, Header, Passphrase, Policy, Source};
use ring::digest::{SHA256, digest};
use serde_json::Value;

const MEMORY_KIB: u64 = 1 << 20;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn json(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join(name)).expect("a list of vectors");
    serde_json::from_str(&text).expect("JSON")
}

/// What a command prints, given that it succeeds.
fn output(command: &mut Command) -> Vec<u8> {
    let done = command.stderr(Stdio::inherit()).output();
    let done =
        done.unwrap_or_else(|error| panic!("{command:?}: {error}; apt-get install xz-utils"));
    assert!(done.status.success(), "{command:?}");
    done.stdout
}

/// An unpacked image, from here or from the folder with more.
fn image(name: &str) -> Option<Vec<u8>> {
    let more = std::env::var_os("HFL_LUKS_VECTORS").map(PathBuf::from);
    let path = more.into_iter().chain([folder()]).map(|folder| folder.join(name));
    let path = path.into_iter().find(|path| path.exists())?;
    Some(output(Command::new("xz").arg("-dc").arg(path)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn passphrase(key: &Value) -> Passphrase {
    use base64ct::{Base64, Encoding};
    let text = key["passphrase_b64"].as_str().expect("a passphrase");
    Passphrase::from_bytes(&Base64::decode_vec(text).expect("base64"))
}

fn scratch(name: &str, bytes: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("hfl-vector-{}-{name}", std::process::id()));
    std::fs::write(&path, bytes).expect("write");
    path
}

#[test]
fn volumes_of_cryptsetup_open_with_the_right_key_and_plaintext() {
    let mut opened = 0;
    for vector in json("positive.json") {
        let name = vector["name"].as_str().expect("a name");
        let Some(bytes) = image(vector["file"].as_str().expect("a file")) else { continue };
        let read = Header::read(&bytes, Policy::Strict);
        if vector["segment"]["encryption"] != "aes-xts-plain64" {
            // cryptsetup opens such volumes; both policies refuse them.
            assert!(matches!(read, Err(Error::Refused(_))), "{name}");
            assert!(Header::read(&bytes, Policy::Compat).is_err(), "{name}");
            continue;
        }
        let header = read.unwrap_or_else(|error| panic!("{name}: {error}"));
        for key in vector["keys"].as_array().expect("keys") {
            let number: u8 = key["slot"].as_str().expect("a slot").parse().expect("a number");
            let found = header.unlock(&passphrase(key), Some(number), MEMORY_KIB);
            if name == "unbound" && number == 1 {
                assert!(matches!(found, Err(Error::WrongPassphrase)), "an unbound slot opened");
                continue;
            }
            let (slot, found) = found.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(slot, number);
            if let Some(expected) = key["volume_key"].as_str() {
                assert_eq!(hex(&found), expected, "{name}: slot {number}");
            }
            if key["kdf"]["type"] != "pbkdf2" {
                let memory = key["kdf"]["memory"].as_u64().expect("KiB");
                let tight = header.unlock(&passphrase(key), Some(number), memory - 1);
                assert!(matches!(tight, Err(Error::Memory(needed, _)) if needed == memory));
            }
            // Without a number, a slot of priority 0 is not tried.
            let tried = header.unlock(&passphrase(key), None, MEMORY_KIB).is_ok();
            assert_eq!(tried, key["priority"] != 0, "{name}: slot {number}");
            let wrong = Passphrase::from_bytes(b"not this");
            let refused = header.unlock(&wrong, Some(number), MEMORY_KIB);
            assert!(matches!(refused, Err(Error::WrongPassphrase)), "{name}");
        }
        if let Some(expected) = vector["plaintext_sha256"].as_str() {
            check_plaintext(name, &bytes, &vector, expected);
        }
        opened += 1;
    }
    assert!(opened >= 11, "only {opened} volumes opened");
}

fn check_plaintext(name: &str, bytes: &[u8], vector: &Value, expected: &str) {
    let path = scratch(name, bytes);
    let volume = Source::new(&path).open(&passphrase(&vector["keys"][0]), false);
    std::fs::remove_file(&path).expect("remove");
    let volume = volume.unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut plain = vec![0; volume.len() as usize];
    volume.read_at(&mut plain, 0).expect("read");
    assert_eq!(vector["plaintext_size"], volume.len());
    assert_eq!(hex(digest(&SHA256, &plain).as_ref()), expected, "{name}");
    let fs = FileSystem::open(volume).expect("ext4");
    let file = fs.file("hello.txt").expect("a file");
    let mut text = vec![0; file.len() as usize];
    fs.read_at(&file, &mut text, 0).expect("read");
    assert_eq!(String::from_utf8_lossy(&text), format!("hello from hfl {name}\n"));
    let file = fs.file("seq.txt").expect("a file");
    let mut text = vec![0; file.len() as usize];
    fs.read_at(&file, &mut text, 0).expect("read");
    let lines: Vec<String> = (1..=2000).map(|number| format!("{number}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&text), lines.concat());
}

#[test]
fn hostile_headers_get_the_verdicts_of_both_policies() {
    let base = image("base8.img.xz").expect("the base image");
    let unpacked = std::env::temp_dir().join(format!("hfl-negative-{}", std::process::id()));
    std::fs::create_dir_all(&unpacked).expect("create");
    let archive = folder().join("negative.tar.xz");
    output(Command::new("tar").arg("xJf").arg(archive).arg("-C").arg(&unpacked));
    let cases = json("negative.json");
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case["name"].as_str().expect("a name");
        let head = std::fs::read(unpacked.join(format!("{name}.hdr"))).expect("a header");
        let len = case["extend"].as_u64().expect("a length") as usize;
        let mut bytes = if name == "atk-keyslot-null-anypass" { Vec::new() } else { base.clone() };
        bytes.resize(len, 0);
        let used = head.len().min(len);
        bytes[..used].copy_from_slice(&head[..used]);
        if name.starts_with("mda-") {
            // Larger metadata: the key material of the base image moves behind it.
            let area = head.len().max(32768);
            if len >= area + (3 << 20) {
                bytes[area..area + (1 << 20)].copy_from_slice(&base[32768..32768 + (1 << 20)]);
            }
        }
        let path = scratch(name, &bytes);
        for (key, policy) in [("policy_strict", Policy::Strict), ("policy_compat", Policy::Compat)]
        {
            let mut source = Source::new(&path);
            source.policy = policy;
            let verdict = source.open(&Passphrase::from_bytes(b"pw0"), false);
            let accepted = verdict.is_ok();
            if accepted != (case[key] == "accept") {
                wrong.push(format!("{name} {policy:?}: {:?}", verdict.err()));
            }
        }
        std::fs::remove_file(&path).expect("remove");
    }
    std::fs::remove_dir_all(&unpacked).expect("remove");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(cases.len() >= 99, "only {} cases", cases.len());
}

#[test]
fn a_flip_anywhere_in_the_metadata_changes_nothing_or_is_an_error() {
    let mut bytes = image("pbkdf2-sha256-k512.img.xz").expect("an image");
    bytes.truncate(1 << 20);
    let vector = json("positive.json").into_iter().find(|v| v["name"] == "pbkdf2-sha256-k512");
    let key = &vector.expect("the vector")["keys"][0];
    let header = Header::read(&bytes, Policy::Strict).expect("valid");
    let (_, expected) = header.unlock(&passphrase(key), None, MEMORY_KIB).expect("opens");
    // Both copies of the header; of the key material every bit counts, so a sample does.
    let area = 32768..32768 + 64 * 4000;
    for at in (0..area.start).chain(area.clone().step_by(4093)) {
        bytes[at] ^= 0x10;
        for policy in [Policy::Strict, Policy::Compat] {
            let Ok(damaged) = Header::read(&bytes, policy) else { continue };
            // Equal metadata and key material give an equal key; the rest is tried.
            if at >= area.start || damaged.json() != header.json() {
                match damaged.unlock(&passphrase(key), None, MEMORY_KIB) {
                    Ok((_, found)) => assert_eq!(*found, *expected, "byte {at}: another key"),
                    Err(error) => {
                        assert!(matches!(error, Error::WrongPassphrase), "byte {at}: {error}");
                    }
                }
            }
            assert!(policy == Policy::Compat || at >= area.start, "byte {at} passed unnoticed");
        }
        bytes[at] ^= 0x10;
    }
}
