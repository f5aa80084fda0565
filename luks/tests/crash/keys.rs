//! Crashes within changes of keys: the volume opens at every moment, with what was valid before or after.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use luks::disk::Disk;
use luks::{Hash, Header, KdfCost, Passphrase, Policy, Secret};

use crate::cuts::{all_losses, kills};
use crate::disk::{Event, Layered};

const FAST: KdfCost = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 };
const MEMORY_KIB: u64 = 1 << 16;
/// Bytes of the two copies of the metadata.
const COPIES_LEN: usize = 32 << 10;
/// Of what changes no copy of the metadata, every so many states are looked at.
const STRIDE: usize = 97;

/// The keys of the tests: two that open at first, and one for later.
const KEYS: [&str; 3] = ["first", "second", "third"];

fn passphrase(name: &str) -> Passphrase {
    Passphrase::from_bytes(name.as_bytes())
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hfl-keys-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("create");
        KEYS.iter().for_each(|key| std::fs::write(path.join(key), key).expect("write"));
        Self(path)
    }

    /// The header of cryptsetup with two keys, an area for little more, and our MAC.
    fn image(&self) -> Layered {
        let path = self.0.join("volume");
        std::fs::File::create(&path).and_then(|file| file.set_len(2 << 20)).expect("a file");
        let pbkdf = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file";
        let format = "luksFormat -q -s 512 --luks2-keyslots-size 768k --offset 2048";
        let [first, second, _] = KEYS.map(|key| self.0.join(key));
        self.cryptsetup(&format!("{format} {pbkdf}"), &[&first, &path]).expect("format");
        self.cryptsetup(&format!("luksAddKey {pbkdf}"), &[&first, &path, &second]).expect("add");
        luks::Source::new(&path).seal(&passphrase("first")).expect("seal");
        Layered::new(Rc::new(std::fs::read(&path).expect("read")))
    }

    fn cryptsetup(&self, words: &str, paths: &[&Path]) -> Result<(), String> {
        let mut command = Command::new("/sbin/cryptsetup");
        let output = command.args(words.split(' ')).args(paths).output();
        let output = output.unwrap_or_else(|e| panic!("{e}; apt-get install cryptsetup-bin"));
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Which of the keys open.
fn open(disk: &Layered) -> [bool; 3] {
    let header = Header::read(disk, Policy::Strict).expect("a header");
    KEYS.map(|key| header.unlock(&passphrase(key), None, MEMORY_KIB).is_ok())
}

fn volume_key(disk: &Layered) -> (Header, Secret) {
    let header = Header::read(disk, Policy::Strict).expect("a header");
    let (_, key) = header.unlock(&passphrase("first"), None, MEMORY_KIB).expect("opens");
    (header, key)
}

/// Cuts a change everywhere. What opens is always what opened before or after, and doing it again ends as it should.
fn check(name: &str, before: [bool; 3], after: [bool; 3], change: impl Fn(&mut Layered)) {
    let scratch = Scratch::new(name);
    let image = scratch.image();
    assert_eq!(open(&image), before);
    let mut disk = image.recording();
    change(&mut disk);
    assert_eq!(open(&disk), after);
    let (mut states, mut looked, mut changed) = (0, [0; 2], Vec::new());
    let mut copies = vec![0; COPIES_LEN];
    let mut look = |state: &Layered| {
        states += 1;
        let seen = std::mem::replace(&mut copies, vec![0; COPIES_LEN]);
        state.read_at(&mut copies, 0).expect("read");
        if copies == seen && states % STRIDE != 0 {
            return;
        }
        let found = open(state);
        assert!(found == before || found == after, "{name}: {found:?}");
        looked[usize::from(found == after)] += 1;
        if changed.last() != Some(&(copies.clone(), found)) {
            changed.push((copies.clone(), found));
        }
    };
    kills(&disk, |state, _| look(state));
    all_losses(&disk, |state, _| look(state));
    println!("{name}: {states} states, {looked:?} of those looked at opened as before and after");
    assert!(looked.iter().all(|&count| count > 0), "{name}: {looked:?}");

    // Where a write ended, cryptsetup says the same.
    let mut state = image.copy();
    let path = scratch.0.join("cut");
    for event in disk.events().iter() {
        let Event::Write(sectors) = event else { continue };
        sectors.iter().for_each(|&(sector, bytes)| state.put(sector, bytes));
        let mut bytes = vec![0; state.len() as usize];
        state.read_at(&mut bytes, 0).expect("read");
        std::fs::write(&path, bytes).expect("write");
        let found = KEYS.map(|key| {
            let key = scratch.0.join(key);
            scratch.cryptsetup("open --test-passphrase --key-file", &[&key, &path]).is_ok()
        });
        assert_eq!(found, open(&state), "{name}: cryptsetup");
        state = state.settled();
    }
}

#[test]
fn a_key_that_is_added_is_there_or_not_and_the_others_always() {
    check("add", [true, true, false], [true; 3], |disk| {
        let (mut header, key) = volume_key(disk);
        header.add_key(disk, &key, &passphrase("third"), FAST).expect("add");
    });
}

#[test]
fn a_key_that_is_changed_is_the_old_one_or_the_new_one() {
    check("change", [true, true, false], [true, false, true], |disk| {
        let (mut header, key) = volume_key(disk);
        header.change_key(disk, &key, 1, &passphrase("third"), FAST).expect("change");
    });
}

#[test]
fn a_key_that_is_removed_takes_no_other_with_it() {
    check("remove", [true, true, false], [true, false, false], |disk| {
        let (mut header, _) = volume_key(disk);
        header.remove_key(disk, 1, &passphrase("first")).expect("remove");
    });
}

#[test]
fn nothing_is_left_of_a_key_that_is_gone_even_where_its_change_was_cut_off() {
    let scratch = Scratch::new("wiped");
    let image = scratch.image();
    let (header, _) = volume_key(&image);
    let [offset, len] = header.metadata().keyslots[1].area;
    let material = |disk: &Layered| {
        let mut bytes = vec![0; len as usize];
        disk.read_at(&mut bytes, offset).expect("read");
        bytes
    };
    let old = material(&image);
    // A sector of noise that is the same by chance has odds of 2^-4096.
    let left = |disk: &Layered| {
        let new = material(disk);
        old.chunks(512).zip(new.chunks(512)).any(|(old, new)| old == new)
    };
    let mut disk = image.recording();
    let (mut header, key) = volume_key(&disk);
    header.change_key(&mut disk, &key, 1, &passphrase("third"), FAST).expect("change");
    assert!(!left(&disk));
    // Cut off before the noise, then another change.
    let mut cut = image.copy();
    let writes = disk.events();
    let mut writes = writes.iter().filter_map(|event| match event {
        Event::Write(write) => Some(write),
        _ => None,
    });
    while open(&cut)[1] || !Header::read(&cut, Policy::Strict).expect("a header").is_whole() {
        let write = writes.next().expect("a change");
        write.iter().for_each(|&(sector, bytes)| cut.put(sector, bytes));
    }
    assert!(left(&cut));
    let (mut header, key) = volume_key(&cut);
    header.change_key(&mut cut, &key, 0, &passphrase("first"), FAST).expect("change");
    assert!(!left(&cut));
}
