//! Keys and headers that change: cryptsetup sees what we changed, and we change what it made.

use std::path::Path;

use luks::{Error, Options, Passphrase, Policy, Source, create};

use crate::{FAST, MIB, Scratch, cryptsetup, dumped_key, hex, try_cryptsetup};

fn opens(file: &Path, volume: &Path) -> bool {
    try_cryptsetup("open --test-passphrase --key-file", &[file, volume], b"").is_ok()
}

#[test]
fn cryptsetup_opens_with_the_keys_that_are_added_and_changed_and_not_with_those_that_are_gone() {
    let scratch = Scratch::new("change");
    let [first, second, third] =
        ["first", "second", "third"].map(|name| scratch.key(name, name.as_bytes()));
    for integrity in [false, true] {
        let path = scratch.path(&format!("volume-{integrity}"));
        let options = Options { cost: FAST, integrity, ..Options::new(24 * MIB) };
        let created = create(&path, None, &options, &[Passphrase::from_bytes(b"first")], false);
        let (id, key) =
            created.map(|volume| (volume.header().id(), hex(volume.key()))).expect("create");
        let source = Source { require_mac: true, expect: Some(id), ..Source::new(&path) };

        assert_eq!(source.add_key(&first.1, &second.1, FAST).expect("add"), 1);
        assert_eq!(
            (dumped_key(&path, &first.0), dumped_key(&path, &second.0)),
            (key.clone(), key.clone())
        );
        assert_eq!(source.change_key(&first.1, &third.1, FAST).expect("change"), 0);
        assert!(!opens(&first.0, &path) && opens(&second.0, &path));
        assert_eq!(dumped_key(&path, &third.0), key);
        assert!(matches!(source.open(&first.1, false), Err(Error::WrongPassphrase)));

        // A slot goes only if another one is known to open.
        assert!(matches!(source.remove_key(1, &second.1), Err(Error::WrongPassphrase)));
        source.remove_key(1, &third.1).expect("remove");
        assert!(!opens(&second.0, &path) && opens(&third.0, &path));
        let last = source.remove_key(0, &third.1).expect_err("the last one");
        assert!(last.to_string().contains("last keyslot"), "{last}");
        assert!(matches!(source.remove_key(7, &third.1), Err(Error::Refused(_))));
        assert!(source.add_key(&third.1, &Passphrase::from_bytes(b""), FAST).is_err());
        assert_eq!(hex(source.open(&third.1, true).expect("still sealed").key()), key);

        // cryptsetup goes on from there.
        let words = "luksAddKey --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file";
        cryptsetup(words, &[&third.0, &path, &first.0]);
        assert_eq!(hex(source.open(&first.1, true).expect("theirs").key()), key);
    }
}

#[test]
fn keys_that_cryptsetup_made_are_changed_and_removed_with_what_refers_to_them() {
    let scratch = Scratch::new("their-keys");
    let [first, second, third] =
        ["first", "second", "third"].map(|name| scratch.key(name, name.as_bytes()));
    let path = scratch.sparse("volume", 24 * MIB);
    let pbkdf = "--pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 64 --pbkdf-parallel 1";
    cryptsetup(&format!("luksFormat -q -s 512 {pbkdf}"), &[&path, &first.0]);
    cryptsetup(&format!("luksAddKey {pbkdf} --key-file"), &[&first.0, &path, &second.0]);
    cryptsetup("config --key-slot 1 --priority prefer", &[&path]);
    let token = br#"{"type":"luks2-keyring","keyslots":["0","1"],"key_description":"hfl:model"}"#;
    try_cryptsetup("token import --json-file -", &[&path], token).expect("a token");
    let key = dumped_key(&path, &first.0);
    let source = Source::new(&path);
    assert_eq!(source.change_key(&second.1, &third.1, FAST).expect("change"), 1);
    // From the first change on a MAC vouches for the header.
    let source = Source { require_mac: true, ..source };
    let volume = source.open(&third.1, false).expect("open");
    assert_eq!((volume.slot(), hex(volume.key())), (1, key.clone()));
    assert_eq!(volume.header().metadata().keyslots[1].priority, 2);
    drop(volume);
    source.remove_key(0, &third.1).expect("remove");
    assert!(!opens(&first.0, &path) && !opens(&second.0, &path));
    assert_eq!(dumped_key(&path, &third.0), key);
    let dump = cryptsetup("luksDump", &[&path]);
    assert!(dump.contains("luks2-keyring") && dump.contains("Keyslot:    1"), "{dump}");
    assert!(!dump.contains("Keyslot:    0"), "{dump}");

    // Until the area is full; what is there still opens then.
    let mut added = 1;
    let full = loop {
        match source.add_key(&third.1, &first.1, FAST) {
            Ok(_) => added += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(full.contains("more than 32") && added == 32, "{full} after {added}");
    assert!(opens(&third.0, &path) && opens(&first.0, &path));
}

#[test]
fn backups_of_headers_come_back_in_both_directions_to_their_own_volume_only() {
    let scratch = Scratch::new("backup");
    let (file, key) = scratch.key("key", b"key");
    let (_, other) = scratch.key("other", b"other");
    let [path, foreign, ours, theirs] =
        ["volume", "foreign", "ours", "theirs"].map(|name| scratch.path(name));
    let options = Options { cost: FAST, ..Options::new(24 * MIB) };
    for path in [&path, &foreign] {
        let volume = create(path, None, &options, &[Passphrase::from_bytes(b"key")], false);
        let formatted = luks::ext4::FileSystem::format(volume.expect("create"), "", 0);
        formatted.and_then(luks::ext4::FileSystem::close).expect("format");
    }
    let source = Source::new(&path);
    assert!(matches!(source.backup(&other, &ours), Err(Error::WrongPassphrase)));
    source.backup(&key, &ours).expect("backup");
    assert!(matches!(source.backup(&key, &ours), Err(Error::Io(..))), "overwritten");
    cryptsetup("luksHeaderBackup --header-backup-file", &[&theirs, &path]);
    assert_eq!(
        std::fs::metadata(&ours).expect("ours").len(),
        std::fs::metadata(&theirs).expect("theirs").len()
    );

    // A key that was changed since: the backup brings the old one back.
    source.change_key(&key, &other, FAST).expect("change");
    for backup in [&ours, &theirs] {
        source.restore(&key, backup).expect("restore");
        assert!(opens(&file, &path));
        assert!(matches!(source.open(&other, false), Err(Error::WrongPassphrase)));
    }
    cryptsetup("luksHeaderRestore -q --header-backup-file", &[&ours, &path]);
    assert!(opens(&file, &path));

    // The header is lost: the file system says whose it was.
    let whole = std::fs::read(&path).expect("read");
    let lost = [&vec![0; 16 << 20], &whole[16 << 20..]].concat();
    std::fs::write(&path, &lost).expect("write");
    source.restore(&key, &ours).expect("restore");
    luks::ext4::FileSystem::open(source.open(&key, false).expect("open")).expect("ext4");

    // Another volume's, whether its header is there or not, and a backup that somebody changed.
    let stranger = Source::new(&foreign);
    assert!(matches!(stranger.restore(&key, &ours), Err(Error::Refused(_))));
    let mut bytes = std::fs::read(&foreign).expect("read");
    bytes[..16 << 20].fill(0);
    std::fs::write(&foreign, &bytes).expect("write");
    assert!(matches!(stranger.restore(&key, &ours), Err(Error::Refused(_))));
    assert_eq!(std::fs::read(&foreign).expect("read"), bytes, "written to");
    let backup = std::fs::read(&ours).expect("read");
    let changed = crate::rewritten(&backup, "\"sector_size\":4096", "\"sector_size\":512");
    std::fs::write(&ours, changed).expect("write");
    for policy in [Policy::Strict, Policy::Compat] {
        let source = Source { policy, ..Source::new(&path) };
        assert!(matches!(source.restore(&key, &ours), Err(Error::Mac)));
    }
}
