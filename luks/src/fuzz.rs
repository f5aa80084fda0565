//! Entries for the fuzzer: one for each format that comes from a disk.

use std::sync::OnceLock;

use crate::Error;
use crate::disk::Disk;
use crate::ext4::{FileSystem, Kind, NewFile};
use crate::header::Header;
use crate::header::json::Value;
use crate::header::metadata::Policy;

/// What is walked of a hostile file system.
const ENTRIES_MAX: usize = 64;
const READ_MAX: u64 = 1 << 20;

/// A binary header that is accepted is written back to one with the same fields.
pub fn fuzz_binary(data: &[u8]) {
    crate::header::binary::fuzz(data);
}

/// JSON that is accepted is written to text that means the same.
pub fn fuzz_json(data: &[u8]) {
    if let Ok(value) = Value::parse(data) {
        let text = value.text();
        assert_eq!(Value::parse(text.as_bytes()).expect("our own text"), value);
    }
}

/// A header that passes a policy keeps to its limits and is written back to an equal one. The first
/// byte says whether to make the checksums right, so that the fuzzer gets behind them.
pub fn fuzz_header(data: &[u8]) {
    let Some((&flags, data)) = data.split_first() else { return };
    let mut disk = data.to_vec();
    disk.resize(disk.len().max(2 << 20), 0);
    if flags & 1 == 1 {
        crate::header::binary::fix_checksums(&mut disk);
    }
    for policy in [Policy::Strict, Policy::Compat] {
        let Ok(header) = Header::read(&disk, policy) else { continue };
        let segment = header.metadata().segment;
        assert!([512, 4096].contains(&segment.sector));
        assert!(header.metadata().keyslots.len() <= 32);
        let mut copy = vec![0; disk.len()];
        if header.write(&mut copy).is_ok() {
            for (slot, material) in header.metadata().keyslots.iter().zip(header.material()) {
                copy[slot.area[0] as usize..][..material.len()].copy_from_slice(material);
            }
            let again = Header::read(&copy, Policy::Compat).expect("our own header");
            assert_eq!(again.metadata(), header.metadata());
            assert_eq!(again.id(), header.id());
        }
    }
}

/// A file system of any bytes: reading and writing end with a result.
pub fn fuzz_ext4(data: &[u8]) {
    let mut disk = vec![0; 8 << 20];
    let len = data.len().min(disk.len());
    disk[..len].copy_from_slice(&data[..len]);
    walk(disk);
}

/// Any bytes as the superblock and the journal of dm-integrity. The first byte says whether to make the commit ids
/// right, so that the fuzzer gets behind them.
pub fn fuzz_integrity(data: &[u8]) {
    crate::data::integrity::fuzz(data);
}

/// Any bytes as the log of an ext4 file system that was not closed, from the journal's superblock on.
pub fn fuzz_journal(data: &[u8]) {
    let (image, log) = unclosed();
    let mut disk = image.clone();
    let len = data.len().min(disk.len() - log);
    disk[*log..][..len].copy_from_slice(&data[..len]);
    walk(disk);
}

/// A file system with a file that was not closed, and where its log is.
fn unclosed() -> &'static (Vec<u8>, usize) {
    const SUPERBLOCK: [u8; 8] = [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 4];
    static IMAGE: OnceLock<(Vec<u8>, usize)> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut fs = FileSystem::format(vec![0; 7 << 20], "seed", 1).expect("room");
        fs.make_directory("model", 2).expect("room");
        let mut file = NewFile::default();
        fs.append(&mut file, &[5; 9000]).expect("room");
        fs.commit(vec![("model/data", file)], 3).expect("room");
        let image = fs.into_disk();
        let log = image.chunks(4096).position(|block| block.starts_with(&SUPERBLOCK));
        (image, log.expect("a journal") * 4096)
    })
}

/// Opens, reads and changes a file system that may be damaged anywhere.
pub(crate) fn walk(disk: Vec<u8>) {
    if let Ok(fs) = FileSystem::open(disk.clone()) {
        let _ = visit(&fs, "", &mut 0);
    }
    if let Ok(mut fs) = FileSystem::open_writable(disk) {
        let mut file = NewFile::default();
        let _ = fs
            .append(&mut file, &[7; 10_000])
            .and_then(|()| fs.commit(vec![("model/data", file)], 1))
            .and_then(|()| fs.remove("model/data", 2))
            .and_then(|()| fs.make_directory("new", 3));
    }
}

fn visit<D: Disk>(fs: &FileSystem<D>, path: &str, seen: &mut usize) -> Result<(), Error> {
    for entry in fs.list(path)? {
        *seen += 1;
        let Ok(name) = String::from_utf8(entry.name) else { continue };
        let path = format!("{path}/{name}");
        if *seen > ENTRIES_MAX {
            return Ok(());
        }
        match entry.kind {
            Kind::Directory => visit(fs, &path, seen)?,
            Kind::File => {
                let file = fs.file(&path)?;
                let mut bytes = vec![0; file.len().min(READ_MAX) as usize];
                fs.read_at(&file, &mut bytes, 0)?;
            }
            Kind::Other => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::creation::create;
    use crate::keys::hash::Hash;
    use crate::keys::kdf::KdfCost;
    use crate::keys::secret::Passphrase;
    use crate::volume::Options;

    fn seeds(target: &str) -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target)
    }

    #[test]
    fn seeds_of_the_fuzz_targets_replay() {
        replay("luks_binary", fuzz_binary);
        replay("luks_ext4", fuzz_ext4);
        replay("luks_header", fuzz_header);
        replay("luks_integrity", fuzz_integrity);
        replay("luks_journal", fuzz_journal);
        replay("luks_json", fuzz_json);
    }

    fn replay(target: &str, run: impl Fn(&[u8])) {
        let mut count = 0;
        for entry in std::fs::read_dir(seeds(target)).expect("seeds") {
            run(&std::fs::read(entry.expect("entry").path()).expect("a seed"));
            count += 1;
        }
        assert!(count > 0, "{target}");
    }

    #[test]
    #[ignore = "writes fuzz/seeds"]
    fn write_seeds() {
        let write = |target: &str, name: &str, bytes: &[u8]| {
            std::fs::create_dir_all(seeds(target)).expect("create");
            std::fs::write(seeds(target).join(name), bytes).expect("write");
        };
        let argon2 = KdfCost::Argon2 { hybrid: true, time: 4, memory_kib: 32, lanes: 1 };
        let pbkdf2 = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 };
        for (name, cost, integrity) in [("argon2", argon2, false), ("integrity", pbkdf2, true)] {
            let path = std::env::temp_dir().join(format!("hfl-seed-{}", std::process::id()));
            let mut options = Options { cost, integrity, ..Options::new(24 << 20) };
            options.label = name.into();
            let keys = [1, 2].map(|key| Passphrase::from_bytes(&[key]));
            drop(create(&path, None, &options, &keys, false).expect("create"));
            let bytes = std::fs::read(&path).expect("read");
            std::fs::remove_file(&path).expect("remove");
            write("luks_header", name, &[&[1], &bytes[..32768]].concat());
            write("luks_binary", name, &bytes[..4096]);
            let json = bytes[4096..16384].split(|&byte| byte == 0).next().expect("a text");
            write("luks_json", name, json);
        }
        let mut fs = FileSystem::format(vec![0; 8 << 20], "seed", 1).expect("format");
        fs.make_directory("model", 2).expect("directory");
        let mut file = NewFile::default();
        fs.append(&mut file, &[5; 9000]).expect("room");
        fs.commit(vec![("model/data", file)], 3).expect("commit");
        // The last transaction again, as if it had not been copied to its place.
        let (image, log) = unclosed();
        let mut transaction = image[*log..][..16 * 4096].to_vec();
        transaction[27] -= 1;
        transaction[31] = 1;
        write("luks_journal", "transaction", &transaction);
        write("luks_integrity", "blocks", &crate::data::integrity::fuzz_seed());
        // Superblock to journal; the content behind reads as zeros.
        write("luks_ext4", "model", &fs.into_disk()[..172_032]);
    }
}
