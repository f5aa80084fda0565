//! Volumes that grow: cryptsetup, e2fsck and resize2fs agree with what we grew, and we with what they did.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use luks::disk::Disk;
use luks::ext4::{self, FileSystem, NewFile};
use luks::{Options, Passphrase, Source, Volume, create_with};

use crate::{FAST, MIB, Scratch, cryptsetup, dumped_key, hex, rewritten};

/// Puts a file of that many bytes into a file system and closes it.
fn save(mut files: FileSystem<Volume>, name: &str, len: usize) {
    let mut file = NewFile::default();
    files.append(&mut file, &bytes(len)).expect("room");
    files.commit(vec![(name, file)], 1).expect("commit");
    files.close().expect("close");
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 3) as u8).collect()
}

fn has(files: &FileSystem<Volume>, name: &str, len: usize) -> bool {
    let file = files.file(name).expect("a file");
    let mut found = vec![0; file.len() as usize];
    files.read_at(&file, &mut found, 0).expect("read");
    found == bytes(len)
}

/// The whole inside of a volume; every sector has to authenticate.
fn plaintext(volume: &Volume) -> Vec<u8> {
    let mut plain = vec![0; volume.len() as usize];
    volume.read_at(&mut plain, 0).expect("every sector");
    plain
}

#[track_caller]
fn run(tool: &str, words: &str, image: &Path) {
    let output = Command::new(tool).args(words.split(' ')).arg(image).output();
    let output = output.unwrap_or_else(|e| panic!("{tool}: {e}; apt-get install e2fsprogs"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{tool}: {text}{}", String::from_utf8_lossy(&output.stderr));
}

fn lengthen(path: &Path, mib: u64) {
    File::options().write(true).open(path).and_then(|file| file.set_len(mib * MIB)).expect("grown");
}

#[test]
fn what_we_grow_passes_cryptsetup_and_e2fsck_and_resize2fs_goes_on_from_there() {
    let scratch = Scratch::new("grow");
    let (file, key) = scratch.key("key", b"key");
    for (integrity, detached) in [(false, false), (true, false), (false, true)] {
        let (path, plain) = (scratch.path("volume"), scratch.path("plain"));
        let header = detached.then(|| scratch.path("header"));
        let options = Options { cost: FAST, integrity, ..Options::new(40 * MIB) };
        let keys = [Passphrase::from_bytes(b"key")];
        let fill = |volume| FileSystem::format(volume, "grows", 1)?.close();
        let made = create_with(&path, header.as_deref(), &options, &keys, true, &|_, _| (), fill);
        let id = made.expect("create").header().id();
        let source = Source { header, expect: Some(id), require_mac: true, ..Source::new(&path) };
        save(
            FileSystem::open_writable(source.open(&key, true).expect("open")).expect("ext4"),
            "a",
            5 << 20,
        );

        lengthen(&path, 180);
        let volume = source.open_grown(&key).expect("grown");
        let mut files = FileSystem::open_writable(volume).expect("ext4");
        let before = files.len();
        assert_eq!(files.grow().expect("grown"), files.len() - before);
        assert!(files.len() > 150 * MIB, "{}", files.len());
        save(files, "b", 60 << 20);

        // Without the header's, which says nothing of sizes: cryptsetup sees the volume as it was.
        let at = source.header.as_ref().unwrap_or(&path);
        assert_eq!(dumped_key(at, &file), hex(source.open(&key, false).expect("open").key()));
        cryptsetup("open --test-passphrase --key-file", &[&file, at]);
        let volume = source.open(&key, false).expect("open");
        std::fs::write(&plain, plaintext(&volume)).expect("write");
        run("/sbin/e2fsck", "-fn", &plain);
        let files = FileSystem::open(volume).expect("ext4");
        assert!(has(&files, "a", 5 << 20) && has(&files, "b", 60 << 20));
        drop(files);

        // resize2fs takes what it is given some more, and we go on again.
        lengthen(&path, 290);
        let mut volume = source.open_grown(&key).expect("grown");
        lengthen(&plain, volume.len() / MIB);
        run("/sbin/resize2fs", "-f", &plain);
        run("/sbin/e2fsck", "-fn", &plain);
        let theirs = std::fs::read(&plain).expect("read");
        volume.write_at(&theirs, 0).and_then(|()| volume.flush()).expect("write");
        assert_eq!(ext4::len_on(&volume), Some(theirs.len() as u64));
        let files = FileSystem::open_writable(volume).expect("theirs is written");
        assert!(has(&files, "a", 5 << 20) && has(&files, "b", 60 << 20));
        drop(files.close().expect("close"));
        lengthen(&path, 440);
        let volume = source.open_grown(&key).expect("grown");
        let mut files = FileSystem::open_writable(volume).expect("ext4");
        assert!(files.grow().expect("grown") > 140 * MIB);
        std::fs::write(&plain, plaintext(&files.close().expect("close"))).expect("write");
        run("/sbin/e2fsck", "-fn", &plain);
    }
}

#[test]
fn a_segment_of_a_fixed_size_grows_for_cryptsetup_too() {
    let scratch = Scratch::new("fixed");
    let (file, key) = scratch.key("key", b"key");
    let path = scratch.sparse("volume", 24 * MIB);
    cryptsetup("luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000", &[&path, &file]);
    let fixed = std::fs::read(&path).expect("read");
    std::fs::write(&path, rewritten(&fixed, "\"dynamic\"", "\"8388608\"")).expect("write");
    lengthen(&path, 30);
    let source = Source::new(&path);
    assert_eq!(source.open(&key, false).expect("open").len(), 8 * MIB);
    let volume = source.open_grown(&key).expect("grown");
    assert_eq!(volume.len(), 14 * MIB);
    drop(volume);
    assert_eq!(source.open(&key, false).expect("open").len(), 14 * MIB);
    assert!(source.read_header().expect("a header").is_whole());
    let dump = cryptsetup("luksDump", &[&path]);
    assert!(dump.contains("length: 14680064 [bytes]"), "{dump}");
    cryptsetup("open --test-passphrase --key-file", &[&file, &path]);
}
