//! Tests of the file system: against e2fsck and mke2fs, and killed after every single write.

use std::cell::RefCell;
use std::process::Command;
use std::rc::Rc;

use super::*;

const NOW: u32 = 1_800_000_000;

fn content(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(2654435761).wrapping_add(seed) >> 7) as u8).collect()
}

fn read(fs: &FileSystem<impl Disk>, path: &str) -> Result<Vec<u8>, Error> {
    let file = fs.file(path)?;
    let mut bytes = vec![0; file.len() as usize];
    fs.read_at(&file, &mut bytes, 0)?;
    Ok(bytes)
}

fn written(fs: &mut FileSystem<impl Disk>, bytes: &[u8]) -> NewFile {
    let mut file = NewFile::default();
    for piece in bytes.chunks(700_001) {
        fs.append(&mut file, piece).expect("room");
    }
    file
}

fn save(fs: &mut FileSystem<impl Disk>, path: &str, bytes: &[u8]) {
    let file = written(fs, bytes);
    fs.commit(vec![(path, file)], NOW).expect("commit");
}

/// Runs a tool over an image; fails unless it says that all is well.
#[track_caller]
fn run(tool: &str, args: &[&str], image: &[u8]) -> Vec<u8> {
    let path = std::env::temp_dir().join(format!("hfl-ext4-{}-{:p}", std::process::id(), image));
    std::fs::write(&path, image).expect("write the image");
    let output = Command::new(tool).args(args).arg(&path).output();
    let output =
        output.unwrap_or_else(|error| panic!("{tool}: {error}; apt-get install e2fsprogs"));
    let after = std::fs::read(&path).expect("read the image");
    std::fs::remove_file(&path).expect("remove the image");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{tool}: {text}{}", String::from_utf8_lossy(&output.stderr));
    after
}

#[track_caller]
fn check(image: &[u8]) {
    run("/sbin/e2fsck", &["-fn"], image);
}

#[test]
fn e2fsck_finds_nothing_to_say_about_any_size() {
    for mib in [7, 64, 128, 129, 300] {
        let disk = vec![0xa5; mib << 20];
        let fs = FileSystem::format(disk, "hfl", NOW).expect("format");
        let image = fs.close().expect("close");
        check(&image);
        let fs = FileSystem::open(image).expect("open");
        assert_eq!(fs.list("/").expect("root")[0].name, b"lost+found");
    }
    assert!(FileSystem::format(vec![0; 4 << 20], "hfl", NOW).is_err());
}

#[test]
fn files_are_written_replaced_and_removed() {
    let mut fs = FileSystem::format(vec![0; 160 << 20], "hfl", NOW).expect("format");
    fs.make_directory("model", NOW).expect("directory");
    fs.make_directory("model", NOW).expect("once more");
    assert!(matches!(fs.make_directory("a/b", NOW), Err(Error::NotFound(_))));
    let free = fs.blocks.read(0).expect("superblock")[1036..1040].to_vec();
    let sizes = [0, 1, 4096, 4097, 5 << 20, 40 << 20];
    for (index, len) in sizes.into_iter().enumerate() {
        save(&mut fs, "model/data", &content(index as u64, len));
        assert_eq!(read(&fs, "model/data").expect("read"), content(index as u64, len));
    }
    let [a, b] = [written(&mut fs, b"one"), written(&mut fs, b"two")];
    fs.commit(vec![("model/a", a), ("/b", b)], NOW).expect("commit");
    let names: Vec<Vec<u8>> = fs.list("model").expect("list").into_iter().map(|e| e.name).collect();
    assert_eq!(names, [b"data".to_vec(), b"a".to_vec()]);
    let image = fs.close().expect("close");
    check(&image);

    let mut fs = FileSystem::open_writable(image).expect("open");
    assert_eq!(read(&fs, "b").expect("read"), b"two");
    assert_eq!(read(&fs, "model/data").expect("read"), content(5, 40 << 20));
    for path in ["model/data", "model/a", "b", "not-there"] {
        fs.remove(path, NOW).expect("remove");
    }
    assert!(matches!(fs.file("b"), Err(Error::NotFound(_))));
    assert!(fs.remove("model", NOW).is_err());
    assert_eq!(fs.blocks.read(0).expect("superblock")[1036..1040], free);
    check(&fs.close().expect("close"));
}

#[test]
fn a_full_volume_keeps_what_it_has_and_many_names_fit() {
    let mut fs = FileSystem::format(vec![0; 12 << 20], "hfl", NOW).expect("format");
    save(&mut fs, "kept", &content(1, 2 << 20));
    let mut file = NewFile::default();
    let error = (0..20).find_map(|_| fs.append(&mut file, &content(2, 1 << 20)).err());
    assert!(matches!(error, Some(Error::Full)));
    fs.discard(file).expect("discard");
    assert_eq!(read(&fs, "kept").expect("read"), content(1, 2 << 20));
    for index in 0..300 {
        save(&mut fs, &format!("a rather long name, so that directories grow, {index}"), b"x");
    }
    assert_eq!(fs.list("/").expect("root").len(), 302);
    check(&fs.close().expect("close"));
}

#[test]
fn fragments_need_a_tree_of_extents() {
    let mut fs = FileSystem::format(vec![0; 40 << 20], "hfl", NOW).expect("format");
    // Every other block taken.
    let mut holders = Vec::new();
    for index in 0..480 {
        holders.push(format!("f{index}"));
        save(&mut fs, &holders[index], &[1; 4096]);
    }
    for holder in holders.iter().step_by(2) {
        fs.remove(holder, NOW).expect("remove");
    }
    let long = content(9, 20 << 20);
    save(&mut fs, "long", &long);
    let (_, inode) = fs.lookup("long").expect("there");
    let (extents, nodes) = extent::read(&fs.blocks, &inode).expect("a tree");
    assert!(extents.len() > 200 && !nodes.is_empty(), "{} extents", extents.len());
    assert_eq!(read(&fs, "long").expect("read"), long);
    let image = fs.close().expect("close");
    check(&image);
    let mut fs = FileSystem::open_writable(image).expect("open");
    fs.remove("long", NOW).expect("remove");
    check(&fs.close().expect("close"));
}

/// Writes in their order: offset and bytes.
type Writes = Rc<RefCell<Vec<(u64, Vec<u8>)>>>;

/// A disk that remembers every write.
struct Recorder {
    bytes: Vec<u8>,
    writes: Writes,
}

impl Disk for Recorder {
    fn len(&self) -> u64 {
        Disk::len(&self.bytes)
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        self.bytes.read_at(target, offset)
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        self.writes.borrow_mut().push((offset, source.to_vec()));
        self.bytes.write_at(source, offset)
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_process_killed_after_any_write_leaves_the_old_or_the_new_state() {
    let mut fs = FileSystem::format(vec![0; 12 << 20], "hfl", NOW).expect("format");
    fs.make_directory("model", NOW).expect("directory");
    let old = content(1, 1 << 20);
    let [data, manifest] = [written(&mut fs, &old), written(&mut fs, b"step 1")];
    fs.commit(vec![("model/data", data), ("model/manifest", manifest)], NOW).expect("commit");
    let start = fs.close().expect("close");

    let new = content(2, (2 << 20) + 5);
    let writes = Writes::default();
    let recorder = Recorder { bytes: start.clone(), writes: writes.clone() };
    let mut fs = FileSystem::open_writable(recorder).expect("open");
    let [data, manifest] = [written(&mut fs, &new), written(&mut fs, b"step 2")];
    fs.commit(vec![("model/data", data), ("model/manifest", manifest)], NOW).expect("commit");
    fs.close().expect("close");

    let mut disk = start;
    let mut seen = [0; 2];
    // Larger writes may also end after any of their pages.
    let pages: Vec<(u64, Vec<u8>)> = writes
        .borrow()
        .iter()
        .flat_map(|(at, bytes)| {
            let page = |(index, page): (usize, &[u8])| (at + index as u64 * 65536, page.to_vec());
            bytes.chunks(65536).enumerate().map(page).collect::<Vec<_>>()
        })
        .collect();
    for (index, (at, bytes)) in pages.iter().enumerate() {
        for reader in [false, true] {
            // Opening for writing replays onto a copy; for reading, in memory.
            let fs = match reader {
                true => FileSystem::open(disk.clone()),
                false => FileSystem::open_writable(disk.clone()),
            };
            let fs = fs.expect("opens after any write");
            let step = read(&fs, "model/manifest").expect("a manifest");
            let data = read(&fs, "model/data").expect("data");
            let is_new = step == b"step 2";
            assert!(data == if is_new { &new[..] } else { &old[..] }, "mixed after write {index}");
            seen[usize::from(is_new)] += 1;
            if !reader && index % 16 == 0 {
                check(&fs.close().expect("close"));
            }
        }
        disk.write_at(bytes, *at).expect("write");
    }
    check(&disk);
    assert!(seen[0] > 20 && seen[1] > 4, "{seen:?}");
}

#[test]
fn what_mke2fs_makes_is_read_and_not_written() {
    let args: [&[&str]; 3] = [
        &["-q", "-F", "-t", "ext4", "-b", "1024"],
        &["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "64bit,metadata_csum"],
        &["-q", "-F", "-t", "ext4", "-O", "^has_journal,^64bit,^metadata_csum"],
    ];
    for args in args {
        let image = run("/sbin/mke2fs", args, &vec![0; 16 << 20]);
        let fs = FileSystem::open(image.clone()).expect("open");
        assert_eq!(fs.list("/").expect("root")[0].name, b"lost+found");
        assert!(matches!(FileSystem::open_writable(image), Err(Error::Foreign(_))));
    }
    let old = run("/sbin/mke2fs", &["-q", "-F", "-t", "ext2"], &vec![0; 16 << 20]);
    assert!(FileSystem::open(old).expect("open").list("/").is_err(), "no extents");
}

#[test]
fn flipped_bytes_are_errors_or_other_content_but_nothing_else() {
    let mut fs = FileSystem::format(vec![0; 7 << 20], "hfl", NOW).expect("format");
    fs.make_directory("model", NOW).expect("directory");
    save(&mut fs, "model/data", &content(3, 100_000));
    let image = fs.close().expect("close");
    // Superblock, descriptors, and the metadata of the first group.
    for at in (1024..1500).chain(4096..4128).chain((8192..160_000).step_by(509)) {
        for flip in [1, 0xff] {
            let mut damaged = image.clone();
            damaged[at] ^= flip;
            crate::fuzz::walk(damaged);
        }
    }
}

#[test]
fn the_capacity_of_a_disk_is_what_a_fresh_file_system_has_free() {
    for len in [7 << 20, 64 << 20, (128 << 20) + (1 << 20), 300 << 20] {
        let fs = FileSystem::format(vec![0; len], "", 0).expect("format");
        assert_eq!(fs.free_space().expect("counted"), capacity(len as u64), "{len}");
    }
    assert_eq!(capacity(5 << 20), 0);
}
