//! Crashes while a volume grows: it opens with its old size or the new one, and growing goes on.

use std::rc::Rc;

use luks::disk::Disk;
use luks::ext4::FileSystem;
use luks::integrity::Authenticated;
use luks::{Error, Hash, Header, KdfCost, Options, Passphrase, Policy, Source, create};

use crate::cuts::{all_losses, kills, random_losses};
use crate::disk::{Event, Layered};
use crate::rewritten::rewritten;
use crate::{Kind, MIB, NOW, Random, content, read, save};

const FAST: KdfCost = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 };
const LENS: [usize; 2] = [8 * MIB, 11 * MIB];
const DATA_LEN: usize = 20_000;

/// A disk before it grew.
struct Shorter(Layered);

impl Disk for Shorter {
    fn len(&self) -> u64 {
        LENS[0] as u64
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        self.0.read_at(target, offset)
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        self.0.write_at(source, offset)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.0.flush()
    }
}

const SECTOR: u32 = 4096;

fn key() -> Vec<u8> {
    (0..96).collect()
}

/// Opens what has grown, and lets it take in what it can; its bytes before and after.
fn grow(kind: Kind, disk: Layered) -> [u64; 2] {
    let volume: Box<dyn Disk> = match kind {
        Kind::Plain => kind.open(disk, true).expect("opens"),
        Kind::Integrity(sector) => {
            let mut volume = Authenticated::open(disk, &key(), sector, true).expect("opens");
            let used = luks::ext4::len_on(&volume).expect("a file system");
            volume.grow(used).expect("grows");
            Box::new(volume)
        }
    };
    let mut fs = FileSystem::open_writable(volume).expect("ext4");
    let before = fs.len();
    fs.grow().expect("grows");
    let after = fs.len();
    fs.close().expect("close");
    [before, after]
}

/// A volume that filled a smaller disk, and all that happens to it while it grows.
fn recording(kind: Kind) -> Layered {
    let disk = Layered::new(Rc::new(vec![0xa5; LENS[1]]));
    let volume: Box<dyn Disk> = match kind {
        Kind::Plain => {
            Box::new(luks::encrypted::Encrypted::new(Shorter(disk.clone()), &key()[..64], SECTOR))
        }
        Kind::Integrity(sector) => {
            Box::new(Authenticated::format(Shorter(disk.clone()), &key(), sector).expect("format"))
        }
    };
    let mut fs = FileSystem::format(volume, "crash", NOW).expect("format");
    fs.make_directory("model", NOW).expect("directory");
    save(&mut fs, 2, DATA_LEN);
    fs.close().expect("close");
    let disk = disk.flattened().recording();
    let [before, after] = grow(kind, disk.clone());
    assert!(after > before + 2 * MIB as u64, "{before} to {after}");
    disk
}

#[test]
fn a_volume_that_is_cut_off_while_it_grows_has_the_old_size_or_the_new_one() {
    for kind in [Kind::Plain, Kind::Integrity(SECTOR)] {
        let disk = recording(kind);
        let [old, new] = grow(kind, disk.at_start());
        let (mut found, mut states) = ([0; 2], 0);
        let mut look = |state: &Layered| {
            states += 1;
            let fs = FileSystem::open(kind.open(state.copy(), false).expect("opens"));
            let fs = fs.expect("a file system");
            assert!(read(&fs, "model/data").expect("data") == content(2, DATA_LEN));
            let recovered = state.copy();
            let [before, after] = grow(kind, recovered.clone());
            assert!([old, new].contains(&before), "{kind:?}: {before}");
            assert_eq!(after, new);
            found[usize::from(before == new)] += 1;
            if states % 50 == 0 {
                let volume = kind.open(recovered, false).expect("opens");
                let mut plain = vec![0; volume.len() as usize];
                volume.read_at(&mut plain, 0).expect("every sector");
                crate::e2fsck(&plain);
            }
        };
        // Where a write ended, what power losses between barriers leave, and any sectors of it.
        let mut state = disk.at_start();
        for event in disk.events().iter() {
            let Event::Write(sectors) = event else { continue };
            look(&state);
            sectors.iter().for_each(|&(sector, bytes)| state.put(sector, bytes));
            state = state.settled();
        }
        random_losses(&disk, 200, &mut Random(11), |state, _, _| look(state));
        println!("{kind:?}: {states} states, {found:?} had the old and the new size");
        assert!(found.iter().all(|&count| count > 0), "{kind:?}: {found:?}");
    }
}

#[test]
fn a_header_whose_segment_is_widened_is_the_old_or_the_new_one() {
    let path = std::env::temp_dir().join(format!("hfl-crash-widen-{}", std::process::id()));
    let options = Options { cost: FAST, ..Options::new(18 * MIB as u64) };
    let key = || Passphrase::from_bytes(b"key");
    drop(create(&path, None, &options, &[key()], false).expect("create"));
    let bytes = std::fs::read(&path).expect("read");
    let fixed = rewritten(&bytes, "\"dynamic\"", "\"1048576\"");
    std::fs::write(&path, fixed).expect("write");
    Source::new(&path).seal(&key()).expect("seal");
    let bytes = std::fs::read(&path).expect("read");
    std::fs::remove_file(&path).expect("remove");
    let mut disk = Layered::new(Rc::new(bytes)).recording();
    let unlocked = |disk: &Layered| {
        let header = Header::read(disk, Policy::Strict).expect("a header");
        let (_, volume_key) = header.unlock(&key(), None, 1 << 20).expect("opens");
        (header, volume_key)
    };
    let (mut header, volume_key) = unlocked(&disk);
    for is_wider in [true, false] {
        let widened = header.widen(&mut disk, &volume_key, 18 * MIB as u64);
        assert_eq!(widened.expect("written"), is_wider);
    }
    let mut found = [0; 2];
    let mut look = |state: &Layered| match unlocked(state).0.metadata().segment.size {
        Some(0x10_0000) => found[0] += 1,
        Some(0x20_0000) => found[1] += 1,
        size => panic!("{size:?}"),
    };
    kills(&disk, |state, _| look(state));
    all_losses(&disk, |state, _| look(state));
    assert!(found.iter().all(|&count| count > 0), "{found:?}");
}
