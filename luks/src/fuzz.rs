//! Entries for the fuzzer: one for each format that comes from a disk.

use crate::Error;
use crate::disk::Disk;
use crate::ext4::{FileSystem, Kind, NewFile};
use crate::header::Header;
use crate::json::Value;
use crate::metadata::Policy;

/// What is walked of a hostile file system.
const ENTRIES_MAX: usize = 64;
const READ_MAX: u64 = 1 << 20;

/// A binary header that is accepted is written back to one with the same fields.
pub fn fuzz_binary(data: &[u8]) {
    crate::binary::fuzz(data);
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
        crate::binary::fix_checksums(&mut disk);
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
