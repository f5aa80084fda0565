//! Both directions with the distribution's cryptsetup: what one writes the other opens.

mod keys;
mod resize;
#[path = "../shared/rewritten.rs"]
mod rewritten;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use luks::disk::Disk;
use luks::ext4::FileSystem;
use luks::{Error, Hash, HeaderId, KdfCost, Options, Passphrase, Policy, Source, create};
use rewritten::rewritten;

const FAST: KdfCost = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 };
const MIB: u64 = 1 << 20;

/// A directory that is gone with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hfl-interop-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("create");
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn key(&self, name: &str, bytes: &[u8]) -> (PathBuf, Passphrase) {
        std::fs::write(self.path(name), bytes).expect("write");
        (self.path(name), Passphrase::from_bytes(bytes))
    }

    fn sparse(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path).and_then(|file| file.set_len(len)).expect("a file");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs cryptsetup with words and paths; what it printed, if it succeeded.
fn try_cryptsetup(words: &str, paths: &[&Path], input: &[u8]) -> Result<String, String> {
    let mut command = Command::new("timeout");
    command.args(["60", "/sbin/cryptsetup"]).args(words.split(' ')).args(paths);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("{error}; apt-get install cryptsetup-bin"));
    child.stdin.take().expect("a pipe").write_all(input).expect("write");
    let output = child.wait_with_output().expect("wait");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

#[track_caller]
fn cryptsetup(words: &str, paths: &[&Path]) -> String {
    try_cryptsetup(words, paths, b"").unwrap_or_else(|error| panic!("{words}: {error}"))
}

/// The volume key that cryptsetup dumps, in hexadecimal.
fn dumped_key(volume: &Path, key: &Path) -> String {
    let text = cryptsetup("luksDump --dump-volume-key -q --key-file", &[key, volume]);
    let dump = text.split("MK dump:").nth(1).expect("a key");
    dump.chars().filter(char::is_ascii_hexdigit).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn cryptsetup_opens_what_we_create() {
    let scratch = Scratch::new("ours");
    let (first, first_key) = scratch.key("first", b"one\nwith a second line\n");
    let (second, second_key) = scratch.key("second", &[0, 255, 10, 7]);
    let argon2 = |hybrid| KdfCost::Argon2 { hybrid, time: 4, memory_kib: 1024, lanes: 1 };
    let sha512 = KdfCost::Pbkdf2 { hash: Hash::Sha512, iterations: 2000 };
    for (index, cost) in [FAST, sha512, argon2(true), argon2(false)].into_iter().enumerate() {
        for (sector, integrity) in [(512, false), (4096, false), (4096, true)] {
            let path = scratch.path(&format!("{index}-{sector}-{integrity}"));
            let mut options = Options::new(24 * MIB);
            (options.cost, options.sector, options.integrity) = (cost, sector, integrity);
            options.label = "model".into();
            let keys = [
                Passphrase::from_bytes(b"one\nwith a second line\n"),
                Passphrase::from_bytes(&[0, 255, 10, 7]),
            ];
            let volume = create(&path, None, &options, &keys, false).expect("create");
            let key = hex(volume.key());
            drop(volume);
            for file in [&first, &second] {
                cryptsetup("open --test-passphrase --key-file", &[file, &path]);
                assert_eq!(dumped_key(&path, file), key);
            }
            for (number, passphrase) in [&first_key, &second_key].into_iter().enumerate() {
                let volume = Source::new(&path).open(passphrase, false).expect("open");
                assert_eq!((usize::from(volume.slot()), hex(volume.key())), (number, key.clone()));
            }
        }
    }
}

#[test]
fn keys_that_cryptsetup_adds_and_removes_keep_the_header_mac() {
    let scratch = Scratch::new("keys");
    let (first, first_key) = scratch.key("first", b"first");
    let (added, added_key) = scratch.key("added", b"added");
    let path = scratch.path("volume");
    let mut options = Options::new(24 * MIB);
    options.cost = FAST;
    let volume = create(&path, None, &options, &[Passphrase::from_bytes(b"first")], false);
    let id = volume.expect("create").header().id();
    let mut source = Source::new(&path);
    (source.require_mac, source.expect) = (true, Some(id));
    cryptsetup(
        "luksAddKey --pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 64 --pbkdf-parallel 2 --key-file",
        &[&first, &path, &added],
    );
    assert_eq!(source.open(&added_key, false).expect("the new key").slot(), 1);
    cryptsetup("config --label renamed", &[&path]);
    cryptsetup("config --key-slot 1 --priority prefer", &[&path]);
    cryptsetup("luksKillSlot -q --key-file", &[&added, &path, Path::new("0")]);
    assert!(matches!(source.open(&first_key, false), Err(Error::WrongPassphrase)));
    let volume = source.open(&added_key, false).expect("still sealed");
    assert_eq!(volume.header().label(), "renamed");
    drop(volume);
    source.expect = Some(HeaderId([7; 32]));
    assert!(matches!(source.open(&added_key, false), Err(Error::Refused(_))));
}

#[test]
fn what_cryptsetup_formats_opens_here() {
    let scratch = Scratch::new("theirs");
    let (file, key) = scratch.key("key", b"their key");
    let kdfs = [
        "--pbkdf pbkdf2 --pbkdf-force-iterations 1000",
        "--pbkdf pbkdf2 --hash sha512 --pbkdf-force-iterations 1000",
        "--pbkdf argon2i --pbkdf-force-iterations 4 --pbkdf-memory 32 --pbkdf-parallel 1",
        "--pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 2048 --pbkdf-parallel 4",
    ];
    for kdf in kdfs {
        for sector in [512, 4096] {
            for bits in [256, 512] {
                let path = scratch.sparse("volume", 24 * MIB);
                let words = format!("luksFormat -q -s {bits} --sector-size {sector} {kdf}");
                cryptsetup(&words, &[&path, &file]);
                let volume = Source::new(&path).open(&key, true).expect("open");
                assert_eq!(volume.len(), 8 * MIB);
                let found = hex(volume.key());
                // While a volume is open for writing, cryptsetup waits for its lock.
                drop(volume);
                assert_eq!(found, dumped_key(&path, &file), "{words}");
                // A token of somebody else, and our seal beside it.
                let token =
                    br#"{"type":"luks2-keyring","keyslots":["0"],"key_description":"hfl:model"}"#;
                try_cryptsetup("token import --json-file -", &[&path], token).expect("a token");
                let mut source = Source::new(&path);
                source.require_mac = true;
                assert!(matches!(source.open(&key, true), Err(Error::NoMac)));
                source.require_mac = false;
                source.seal(&key).expect("seal");
                source.require_mac = true;
                source.open(&key, true).expect("sealed");
                assert!(cryptsetup("luksDump", &[&path]).contains("luks2-keyring"));
                cryptsetup("open --test-passphrase --key-file", &[&file, &path]);
            }
        }
    }
}

#[test]
fn detached_headers_work_in_both_directions() {
    let scratch = Scratch::new("detached");
    let (file, key) = scratch.key("key", b"detached");
    let (data, header) = (scratch.path("data"), scratch.path("header"));
    let mut options = Options::new(8 * MIB);
    options.cost = FAST;
    let keys = [Passphrase::from_bytes(b"detached")];
    let volume = create(&data, Some(&header), &options, &keys, false).expect("create");
    assert_eq!(volume.len(), 8 * MIB);
    FileSystem::format(volume, "", 0).and_then(FileSystem::close).expect("format");
    cryptsetup(
        "open --test-passphrase --key-file",
        &[&file, Path::new("--header"), &header, &data],
    );
    let mut source = Source::new(&data);
    source.header = Some(header);
    FileSystem::open(source.open(&key, false).expect("open")).expect("ext4");
    // The data alone is no volume, and a detached header in front of nothing is refused.
    assert!(matches!(Source::new(&data).open(&key, false), Err(Error::NotLuks(_))));
    assert!(matches!(
        Source::new(source.header.as_ref().expect("set")).open(&key, false),
        Err(Error::Refused(_))
    ));

    let theirs = scratch.sparse("theirs", 8 * MIB);
    let their_header = scratch.path("their-header");
    cryptsetup(
        "luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --header",
        &[&their_header, &theirs, &file],
    );
    let mut source = Source::new(&theirs);
    source.header = Some(their_header);
    assert_eq!(source.open(&key, false).expect("open").len(), 8 * MIB);
}

#[test]
fn nothing_is_formatted_overwritten_or_followed_unasked() {
    let scratch = Scratch::new("unasked");
    let (_, key) = scratch.key("key", b"key");
    let path = scratch.path("volume");
    std::fs::write(&path, b"somebody's file").expect("write");
    let mut options = Options::new(24 * MIB);
    options.cost = FAST;
    let keys = || [Passphrase::from_bytes(b"key")];
    assert!(matches!(create(&path, None, &options, &keys(), false), Err(Error::Io(..))));
    assert_eq!(std::fs::read(&path).expect("read"), b"somebody's file");
    create(&path, None, &options, &keys(), true).expect("forced");
    let before = std::fs::read(&path).expect("read");

    // One copy damaged: the other counts if its MAC vouches for it, or to the tolerant; neither repairs.
    for bare in [false, true] {
        let mut damaged = match bare {
            false => before.clone(),
            true => rewritten(&before, "hfl-header-mac", "somebody-else's"),
        };
        damaged[5000] ^= 1;
        std::fs::write(&path, &damaged).expect("write");
        let mut source = Source::new(&path);
        let strict = source.open(&key, true);
        assert_eq!(strict.is_err(), bare, "{:?}", strict.err());
        drop(strict);
        source.policy = Policy::Compat;
        drop(source.open(&key, true).expect("one copy is enough"));
        assert_eq!(std::fs::read(&path).expect("read"), damaged);
    }

    // Two users at once, and a link.
    std::fs::write(&path, &before).expect("write");
    let first = Source::new(&path).open(&key, true).expect("open");
    assert!(matches!(Source::new(&path).open(&key, false), Err(Error::Busy(_))));
    drop(first);
    let link = scratch.path("link");
    std::os::unix::fs::symlink(&path, &link).expect("link");
    assert!(matches!(Source::new(&link).open(&key, false), Err(Error::Refused(_))));
    assert!(Source::new(&path).open(&Passphrase::from_bytes(b""), false).is_err());

    // A failed creation leaves nothing.
    options.size = 5000;
    assert!(create(&scratch.path("small"), None, &options, &keys(), false).is_err());
    assert!(!scratch.path("small").exists());
}

#[test]
fn a_header_with_a_changed_segment_fails_its_mac_even_when_checksums_are_right() {
    let scratch = Scratch::new("mac");
    let (_, key) = scratch.key("key", b"key");
    let path = scratch.path("volume");
    let mut options = Options::new(24 * MIB);
    options.cost = FAST;
    create(&path, None, &options, &[Passphrase::from_bytes(b"key")], false).expect("create");
    let bytes = std::fs::read(&path).expect("read");
    // Sectors of 512 instead of 4096, as a host could write it.
    let changed = rewritten(&bytes, "\"sector_size\":4096", "\"sector_size\":512");
    std::fs::write(&path, &changed).expect("write");
    Source::new(&path).read_header().expect("well formed");
    assert!(matches!(Source::new(&path).open(&key, false), Err(Error::Mac)));
}

#[test]
fn a_segment_that_does_not_fit_its_device_is_refused_before_it_is_opened() {
    let scratch = Scratch::new("fit");
    let (_, key) = scratch.key("key", b"key");
    let path = scratch.path("volume");
    let options = Options { cost: FAST, ..Options::new(24 * MIB) };
    create(&path, None, &options, &[Passphrase::from_bytes(b"key")], false).expect("create");
    let source = Source::new(&path);
    let whole = std::fs::read(&path).expect("read");
    let longer = rewritten(&whole, "\"dynamic\"", "\"8392704\"");
    for bytes in [&longer[..], &whole[..16 << 20], &whole[..(16 << 20) + 4095]] {
        std::fs::write(&path, bytes).expect("write");
        assert!(matches!(source.read_header(), Err(Error::Truncated(_))), "{} bytes", bytes.len());
        assert!(source.open(&key, false).is_err());
    }
    std::fs::write(&path, rewritten(&whole, "\"dynamic\"", "\"8388608\"")).expect("write");
    source.read_header().expect("just fits");

    // A detached header: with its device, and alone.
    let (data, header) = (scratch.path("data"), scratch.path("header"));
    let options = Options { cost: FAST, ..Options::new(8 * MIB) };
    let keys = [Passphrase::from_bytes(b"key")];
    drop(create(&data, Some(&header), &options, &keys, false).expect("create"));
    let source = Source { header: Some(header.clone()), ..Source::new(&data) };
    source.read_header().expect("fits");
    Source::new(&header).read_header().expect("alone");
    std::fs::write(&data, b"").expect("truncate");
    assert!(matches!(source.read_header(), Err(Error::Truncated(_))));
}

#[test]
fn requirements_reencryption_flags_and_other_ciphers_are_refused_under_both_policies() {
    let scratch = Scratch::new("lists");
    let (_, key) = scratch.key("key", b"key");
    let path = scratch.path("volume");
    let options = Options { cost: FAST, ..Options::new(24 * MIB) };
    create(&path, None, &options, &[Passphrase::from_bytes(b"key")], false).expect("create");
    let bytes = std::fs::read(&path).expect("read");
    let config = "\"config\":{";
    let segment = "\"iv_tweak\":\"0\",";
    let changes = [
        (config, "\"config\":{\"requirements\":{\"mandatory\":[\"online-reencrypt\"]},"),
        (config, "\"config\":{\"requirements\":{\"mandatory\":[]},"),
        (config, "\"config\":{\"flags\":[\"allow-discards\"],"),
        (segment, "\"iv_tweak\":\"0\",\"flags\":[\"in-reencryption\"],"),
        (segment, "\"iv_tweak\":\"8\","),
        (
            "\"type\":\"luks2\"",
            "\"type\":\"reencrypt\",\"mode\":\"decrypt\",\"direction\":\"forward\"",
        ),
        ("\"type\":\"crypt\"", "\"type\":\"linear\""),
        ("\"encryption\":\"aes-xts-plain64\",\"sector", "\"encryption\":\"aes-ecb\",\"sector"),
        ("\"encryption\":\"aes-xts-plain64\",\"key", "\"encryption\":\"cipher_null-ecb\",\"key"),
        (segment, "\"iv_tweak\":\"0\",\"iv_tweak\":\"0\","),
    ];
    for (from, to) in changes {
        std::fs::write(&path, rewritten(&bytes, from, to)).expect("write");
        for policy in [Policy::Strict, Policy::Compat] {
            let source = Source { policy, ..Source::new(&path) };
            assert!(source.open(&key, false).is_err(), "{policy:?} accepts {to}");
        }
    }
    std::fs::write(&path, rewritten(&bytes, "\"sector_size\"", "\"sector_size\"  "))
        .expect("write");
    Source::new(&path).open(&key, false).expect("the change itself is harmless");
}

#[test]
fn what_changes_on_the_disk_after_reading_changes_nothing() {
    let scratch = Scratch::new("toctou");
    let (_, key) = scratch.key("key", b"key");
    let path = scratch.path("volume");
    let options = Options { cost: FAST, ..Options::new(24 * MIB) };
    let created = create(&path, None, &options, &[Passphrase::from_bytes(b"key")], false);
    let expected = hex(created.expect("create").key());
    let header = Source::new(&path).read_header().expect("a header");
    // The host wipes header and keyslots: bait for a script that would format.
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[..16 << 20].fill(0);
    std::fs::write(&path, &bytes).expect("write");
    let (_, found) = header.unlock(&key, None, 1 << 20).expect("from the copy in memory");
    assert_eq!(hex(&found), expected);
    assert!(matches!(Source::new(&path).open(&key, true), Err(Error::NotLuks(_))));
    assert!(create(&path, None, &options, &[Passphrase::from_bytes(b"key")], false).is_err());
    assert_eq!(std::fs::read(&path).expect("read"), bytes, "and nothing is written");
}
