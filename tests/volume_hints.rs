//! What is said of a volume that cannot be used is true, and what it says to try helps: where it is said, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use luks::disk::Disk;
use luks::{Passphrase, Source};
use ring::digest::{SHA256, SHA512, digest};

use crate::cli::hfl;
use crate::processes::{Dir, free_port};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Volumes of one key, each with something about it.
struct Volumes {
    dir: Dir,
    key: PathBuf,
}

impl Volumes {
    fn new(name: &str) -> Self {
        let dir = Dir::new(name);
        let key = dir.path("key");
        fs::write(&key, b"a key").expect("key");
        Self { dir, key }
    }

    /// A volume of this program.
    fn ours(&self, name: &str, more: &[&str]) -> PathBuf {
        let path = self.dir.path(name);
        let args = ["luks", "create", text(&path), "--size", "32M", "--key-file", text(&self.key)];
        let output = hfl(&[&args[..], &["--kdf", "pbkdf2", "--kdf-time", "1000"], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        path
    }

    /// A volume of cryptsetup, and inside an ext4 file system as mke2fs makes them, with a file and a link.
    fn theirs(&self, name: &str, more: &str) -> PathBuf {
        let path = self.dir.path(name);
        fs::File::create(&path).and_then(|file| file.set_len(48 << 20)).expect("a file");
        let words =
            format!("luksFormat -q -s 512 --pbkdf pbkdf2 --pbkdf-force-iterations 1000{more}");
        self.cryptsetup(&words, &[&path, &self.key]);
        path
    }

    fn fill(&self, volume: &Path) {
        let [folder, image] = ["inside", "image"].map(|name| self.dir.path(name));
        fs::create_dir_all(folder.join("model")).expect("create");
        fs::write(folder.join("model/weights"), vec![7; 3 << 20]).expect("write");
        fs::write(folder.join("notes"), b"read me").expect("write");
        std::os::unix::fs::symlink("notes", folder.join("link")).expect("link");
        let mut opened =
            Source::new(volume).open(&Passphrase::from_bytes(b"a key"), true).expect("open");
        let size = format!("{}k", opened.len() >> 10);
        let mut mke2fs = Command::new("/sbin/mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).args([&folder, &image]).arg(size);
        let made = mke2fs.status();
        assert!(made.expect("mke2fs; apt-get install e2fsprogs").success());
        let bytes = fs::read(&image).expect("read");
        opened.write_at(&bytes, 0).and_then(|()| opened.flush()).expect("write");
    }

    fn cryptsetup(&self, words: &str, paths: &[&Path]) {
        let output = Command::new("/sbin/cryptsetup").args(words.split(' ')).args(paths).output();
        let output = output.unwrap_or_else(|e| panic!("{e}; apt-get install cryptsetup-bin"));
        assert!(output.status.success(), "{words}: {}", stderr(&output));
    }

    fn luks(&self, command: &str, volume: &Path, more: &[&str]) -> Output {
        let args = ["luks", command, text(volume), "--key-file", text(&self.key)];
        hfl(&[&args[..], more].concat())
    }

    fn export(&self, volume: &Path, more: &[&str]) -> Output {
        let out = self.dir.path("out");
        self.luks("export", volume, &[&["--files", text(&out)], more].concat())
    }

    /// A parameter server with its model there; what it says when it cannot.
    fn role(&self, volume: &Path) -> String {
        let address = format!("localhost:{}", free_port());
        let args =
            ["--role", "ps0", "--attestation", "sim", "--workers", "1", "--ps-hosts", &address];
        let more = ["--volume", text(volume), "--key-file", text(&self.key)];
        let output = hfl(&[&args[..], &more].concat());
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Changes a file's bytes.
fn changed(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("read");
    change(&mut bytes);
    fs::write(path, bytes).expect("write");
}

/// Both copies of a header under another checksum, which is right.
fn with_sha512(bytes: &mut [u8]) {
    for copy in [0, 16384] {
        let copy = &mut bytes[copy..copy + 16384];
        copy[72..104].fill(0);
        copy[72..78].copy_from_slice(b"sha512");
        copy[448..512].fill(0);
        let sum = digest(&SHA512, copy);
        copy[448..512].copy_from_slice(sum.as_ref());
    }
}

/// A header of which one copy is damaged and nothing vouches for the other.
fn with_one_copy(bytes: &mut [u8]) {
    let copy = &mut bytes[..16384];
    let at = copy.windows(14).position(|part| part == b"hfl-header-mac").expect("a MAC");
    for offset in [0, 16384] {
        let copy = &mut bytes[offset..offset + 16384];
        copy[at..at + 14].copy_from_slice(b"somebody-else.");
        copy[448..512].fill(0);
        let sum = digest(&SHA256, copy);
        copy[448..480].copy_from_slice(sum.as_ref());
    }
    bytes[5000] ^= 1;
}

/// What has a refusal, and whether `--compat` is what helps.
struct Case {
    path: PathBuf,
    says: &'static str,
    tries: &'static str,
    compat: bool,
}

#[test]
fn each_refusal_says_what_is_true_and_names_what_helps_where_it_helps() {
    let volumes = Volumes::new("hints");
    let ours = |name: &str, more: &[&str], change: &dyn Fn(&mut Vec<u8>)| {
        let path = volumes.ours(name, more);
        changed(&path, change);
        path
    };
    let large = volumes.theirs("large", " --luks2-metadata-size 4096k --luks2-keyslots-size 2048k");
    let (whole, tags) = ("the whole of it", "a backup; hfl luks export");
    let case = |path, says, tries, compat| Case { path, says, tries, compat };
    let cases = [
        case(ours("short", &[], &|b| b.truncate(8000)), "ends within its header", whole, false),
        case(
            ours("no-data", &[], &|b| b.truncate(16 << 20)),
            "ends where its data begins",
            whole,
            false,
        ),
        case(
            ours("cut", &[], &|b| b.truncate(24 << 20)),
            "cut off: a file system of",
            whole,
            false,
        ),
        case(
            ours("sector", &["--integrity"], &|b| {
                let data = (16 << 20) + (530 << 10);
                b[data..].iter_mut().step_by(256).for_each(|byte| *byte ^= 1);
            }),
            "fails authentication",
            tags,
            false,
        ),
        case(large, "metadata of 4 MiB, up to 1 MiB is read", "", false),
        case(
            ours("sha512", &[], &|b| with_sha512(b)),
            "a header checksum with sha512",
            "--compat",
            true,
        ),
        case(
            ours("one-copy", &[], &|b| with_one_copy(b)),
            "one whole copy and no MAC",
            "--compat",
            true,
        ),
    ];
    for Case { path, says, tries, compat } in cases {
        let refused = volumes.export(&path, &[]);
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1), "{}: {said}", path.display());
        assert!(said.contains(says) && said.contains(tries), "'{says}', '{tries}' not in: {said}");
        assert_eq!(said.contains("--compat"), compat, "{said}");
        assert!(
            !said.contains("cryptsetup repair") && !said.contains("damaged: metadata"),
            "{said}"
        );
        let tolerant = volumes.export(&path, &["--compat"]);
        assert_eq!(tolerant.status.success(), compat, "{}", stderr(&tolerant));
        assert!(!stderr(&tolerant).contains("try: --compat"), "{}", stderr(&tolerant));
        let said = volumes.role(&path);
        assert!(said.contains(says) && !said.contains("try: --compat"), "{said}");
        if compat {
            // What a role's hint names mends it.
            assert!(said.contains("hfl luks seal --compat"), "{said}");
            let sealed = volumes.luks("seal", &path, &["--compat"]);
            assert!(sealed.status.success(), "{}", stderr(&sealed));
            assert!(volumes.export(&path, &[]).status.success());
        }
    }
}

/// A process that is killed leaves free blocks that fail authentication; where a file is, or a table, it was an attack.
#[test]
fn a_raw_export_has_what_is_authentic_and_ends_well_if_only_free_blocks_are_not() {
    let volumes = Volumes::new("raw");
    let folder = volumes.dir.path("inside");
    fs::create_dir_all(&folder).expect("create");
    fs::write(folder.join("notes"), b"read me").expect("write");
    let path = volumes.ours("volume", &["--integrity", "--files", text(&folder)]);
    let raw = volumes.dir.path("image");
    let export = || volumes.luks("export", &path, &["--raw", text(&raw)]);
    assert!(export().status.success());
    let whole = fs::read(&raw).expect("read");

    changed(&path, |bytes| *bytes.iter_mut().rev().nth(6000).expect("a byte") ^= 1);
    let exported = export();
    assert!(exported.status.success(), "{}", stderr(&exported));
    assert!(stderr(&exported).contains("free blocks"), "{}", stderr(&exported));
    // What was never written was zeros before.
    assert!(fs::read(&raw).expect("read") == whole, "other bytes");

    let data = (16 << 20) + (530 << 10);
    changed(&path, |bytes| bytes[data..].iter_mut().step_by(256).for_each(|byte| *byte ^= 1));
    let exported = export();
    let said = stderr(&exported);
    assert!(exported.status.code() == Some(1) && said.contains("fail authentication"), "{said}");
    assert_eq!(fs::read(&raw).expect("read").len(), whole.len());
}

#[test]
fn labels_in_utf_8_are_read_and_a_priority_that_is_in_the_way_is_named() {
    let volumes = Volumes::new("texts");
    let path = volumes.ours("volume", &["--label", "mod\u{e8}le"]);
    let dumped = volumes.luks("dump", &path, &[]);
    assert!(String::from_utf8_lossy(&dumped.stdout).contains("mod\u{e8}le"), "{dumped:?}");
    volumes.cryptsetup("config --label \u{6a21}\u{578b}", &[&path]);
    let dumped = volumes.luks("dump", &path, &[]);
    assert!(String::from_utf8_lossy(&dumped.stdout).contains("\u{6a21}\u{578b}"), "{dumped:?}");
    assert!(volumes.export(&path, &[]).status.success());

    volumes.cryptsetup("config --key-slot 0 --priority ignore", &[&path]);
    let said = stderr(&volumes.export(&path, &[]));
    assert!(said.contains("not tried: 0") && said.contains("--slot"), "{said}");
    assert!(volumes.export(&path, &["--slot", "0"]).status.success());
    let said = volumes.role(&path);
    assert!(said.contains("not tried: 0") && !said.contains("--slot"), "{said}");
    let help = String::from_utf8(hfl(&["luks", "export", "--help"]).stdout).expect("text");
    assert!(help.contains("one damaged copy") && help.contains("sha1 splitters"), "{help}");
}

#[test]
fn a_volume_of_luks_format_and_mkfs_is_converted_to_one_that_roles_take() {
    let volumes = Volumes::new("convert");
    let (old, new) = (volumes.theirs("old", ""), volumes.dir.path("new"));
    volumes.fill(&old);
    assert!(volumes.role(&old).contains("hfl luks seal"), "nothing vouches for it");
    let sealed = volumes.luks("seal", &old, &[]);
    assert!(sealed.status.success(), "{}", stderr(&sealed));
    let said = volumes.role(&old);
    assert!(
        said.contains("hfl did not make it") && said.contains("hfl luks convert OLD NEW"),
        "{said}"
    );

    for (name, more) in
        [("plain", &[][..]), ("integrity", &["--integrity"]), ("larger", &["--size", "64M"])]
    {
        let new = volumes.dir.path(name);
        let converted = volumes.luks("convert", &old, &[&[text(&new)], more].concat());
        let said = stderr(&converted);
        // The link is left out, and told.
        assert!(converted.status.code() == Some(1) && said.contains("link: a link"), "{said}");
        let (raw, out) = (volumes.dir.path("raw"), volumes.dir.path(&format!("{name}-out")));
        assert!(volumes.luks("export", &new, &["--raw", text(&raw)]).status.success());
        let checked = Command::new("/sbin/e2fsck").arg("-fn").arg(&raw).output().expect("e2fsck");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        let exported = volumes.luks("export", &new, &["--files", text(&out)]);
        assert!(exported.status.success(), "{}", stderr(&exported));
        assert_eq!(fs::read(out.join("model/weights")).expect("read"), vec![7; 3 << 20]);
        assert_eq!(fs::read(out.join("notes")).expect("read"), b"read me");
        volumes.cryptsetup("open --test-passphrase --key-file", &[&volumes.key, &new]);
        // A role opens it, and sees before the first step that it is too small for its model.
        let said = volumes.role(&new);
        assert!(said.contains("checkpoints, the last") && said.contains("are left"), "{said}");
    }
    // Never over something, and nothing is left of a copy that could not be made.
    fs::write(&new, b"somebody's").expect("write");
    assert_eq!(volumes.luks("convert", &old, &[text(&new)]).status.code(), Some(1));
    assert_eq!(fs::read(&new).expect("read"), b"somebody's");
    let small = volumes.dir.path("small");
    let refused = volumes.luks("convert", &old, &[text(&small), "--size", "18M"]);
    assert!(!refused.status.success() && !small.exists(), "{}", stderr(&refused));
}

#[test]
fn room_in_a_volume_is_known_before_it_is_made_and_by_the_doctor() {
    let volumes = Volumes::new("small");
    let path = volumes.dir.path("volume");
    let address = format!("localhost:{}", free_port());
    let role = ["--role", "ps0", "--attestation", "sim", "--workers", "1", "--ps-hosts", &address];
    let place =
        ["--volume", text(&path), "--key-file", text(&volumes.key), "--create-volume", "150M"];
    let refused = hfl(&[&role[..], &place].concat());
    let said = stderr(&refused);
    assert!(refused.status.code() == Some(1) && said.contains("checkpoints, the last"), "{said}");
    assert!(!path.exists(), "made all the same");

    let small = volumes.ours("ours", &[]);
    let doctor = |volume: &Path| {
        let args =
            ["doctor", "--json", "--role", "ps0", "--attestation", "sim", "--ps-hosts", &address];
        let output = hfl(&[&args[..], &["--volume", text(volume)]].concat());
        let findings: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let findings = findings.as_array().expect("a list");
        let found = findings.iter().find(|finding| finding["item"] == "volume").expect("a volume");
        (found["standing"].clone(), found["found"].as_str().expect("text").to_owned())
    };
    let (standing, found) = doctor(&small);
    assert!(standing == "failed" && found.contains("checkpoints, the last"), "{found}");
    let large = volumes.dir.path("large");
    let args = ["luks", "create", text(&large), "--size", "600M", "--key-file", text(&volumes.key)];
    assert!(hfl(&args).status.success());
    let (standing, found) = doctor(&large);
    assert!(standing == "ok" && found.contains("checkpoints take"), "{found}");
}
