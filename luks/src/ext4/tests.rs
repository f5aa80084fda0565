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
fn a_file_system_has_room_for_as_many_files_as_it_was_made_for() {
    for (mib, files) in [(12, 3000), (200, 5000)] {
        let fs = FileSystem::format_for(vec![0; mib << 20], "many", files, NOW);
        let mut fs = fs.expect("format");
        for first in (0..files).step_by(50) {
            let names: Vec<String> = (first..first + 50).map(|name| name.to_string()).collect();
            let files = names.iter().map(|name| (name.as_str(), NewFile::default())).collect();
            fs.commit(files, NOW).expect("commit");
        }
        assert_eq!(fs.list("/").expect("root").len() as u64, files + 1);
        check(&fs.close().expect("close"));
    }
    assert!(FileSystem::format_for(vec![0; 12 << 20], "many", 1 << 20, NOW).is_err());
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
struct Recorder<D> {
    bytes: D,
    writes: Writes,
}

impl<D: Disk> Disk for Recorder<D> {
    fn len(&self) -> u64 {
        self.bytes.len()
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

/// Blocks that are not zero of a disk as large as it likes.
#[derive(Clone)]
struct Sparse {
    len: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Sparse {
    fn image(&self) -> std::path::PathBuf {
        use std::os::unix::fs::FileExt;
        let name = format!("hfl-ext4-sparse-{}-{:p}", std::process::id(), &raw const *self);
        let path = std::env::temp_dir().join(name);
        let file = std::fs::File::create(&path).expect("create");
        file.set_len(self.len).expect("length");
        for (block, bytes) in &self.blocks {
            file.write_all_at(bytes, block * 4096).expect("write");
        }
        path
    }

    /// What e2fsck says, and whether the copies of the superblock say the same sizes.
    fn check(&self) {
        let path = self.image();
        let run = |tool: &str, words: &str| {
            let output = Command::new(tool).args(words.split(' ')).arg(&path).output();
            let output = output.expect("apt-get install e2fsprogs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{words}: {text}");
            text
        };
        run("/sbin/e2fsck", "-fn");
        let sizes = |words: &str| -> Vec<String> {
            let told = run("/sbin/dumpe2fs", words);
            let sizes = ["Block count", "Inode count", "Filesystem features", "First meta"];
            let lines = told.lines().filter(|line| sizes.iter().any(|size| line.starts_with(size)));
            lines.map(str::to_owned).collect()
        };
        let groups = len_on(self).expect("a file system").div_ceil(128 << 20);
        for group in (1..groups).filter(|&group| layout::has_backup(group)) {
            let copy = format!("-h -o blocksize=4096 -o superblock={}", group * 32768);
            assert_eq!(sizes(&copy), sizes("-h"), "group {group}");
        }
        std::fs::remove_file(&path).expect("remove");
    }
}

impl Sparse {
    fn replayed_by_e2fsck(&self) {
        let path = self.image();
        // Another log than its own first, which is no error: 1 says that it was mended.
        for (words, most) in [("-p", 1), ("-fn", 0)] {
            let output = Command::new("/sbin/e2fsck").arg(words).arg(&path).output();
            let output = output.expect("apt-get install e2fsprogs");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.code().is_some_and(|code| code <= most), "{words}: {text}");
        }
        std::fs::remove_file(&path).expect("remove");
    }
}

impl Disk for Sparse {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        crate::disk::check_range(self.len, target.len(), offset)?;
        target.fill(0);
        let end = offset + target.len() as u64;
        for (block, bytes) in self.blocks.range(offset / 4096..end.div_ceil(4096)) {
            let (start, stop) = ((block * 4096).max(offset), ((block + 1) * 4096).min(end));
            target[(start - offset) as usize..(stop - offset) as usize].copy_from_slice(
                &bytes[(start - block * 4096) as usize..(stop - block * 4096) as usize],
            );
        }
        Ok(())
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        crate::disk::check_range(self.len, source.len(), offset)?;
        assert!(offset.is_multiple_of(4096) && source.len().is_multiple_of(4096));
        for (index, bytes) in source.chunks(4096).enumerate() {
            let block = offset / 4096 + index as u64;
            match bytes.iter().all(|&byte| byte == 0) {
                true => self.blocks.remove(&block),
                false => self.blocks.insert(block, bytes.to_vec()),
            };
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_file_system_grows_with_its_disk_over_any_size() {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let sizes: [&[u64]; 4] = [
        // Within a group, over its end, to a scrap that is left out, to the middle of group 3.
        &[12 * MIB, 13 * MIB, 100 * MIB, 128 * MIB, 128 * MIB + 4096, 300 * MIB, 513 * MIB],
        // Over the descriptors that have room behind the superblock, and on from there.
        &[15 * GIB, 16 * GIB, 16 * GIB + 4 * MIB, 20 * GIB, 33 * GIB, 140 * GIB],
        &[16 * GIB + MIB / 2, 17 * GIB],
        &[40 * MIB, 36 * GIB],
    ];
    for sizes in sizes {
        let disk = Sparse { len: sizes[0], blocks: BTreeMap::new() };
        let mut fs = FileSystem::format(disk, "grows", NOW).expect("format");
        let kept = content(3, 2 << 20);
        save(&mut fs, "kept", &kept);
        let mut disk = fs.close().expect("close");
        disk.check();
        for &len in &sizes[1..] {
            disk.len = len;
            let mut fs = FileSystem::open_writable(disk).expect("open");
            let (before, free) = (fs.len(), fs.free_space().expect("counted"));
            let gained = fs.grow().expect("grows");
            assert_eq!(fs.len(), before + gained);
            assert!(len - fs.len() < MIB, "{} of {len}", fs.len());
            assert!(fs.free_space().expect("counted") <= free + gained);
            assert_eq!(fs.grow().expect("again"), 0);
            let path = format!("of {len}");
            save(&mut fs, &path, &content(len, 5 << 20));
            disk = fs.close().expect("close");
            disk.check();
            let fs = FileSystem::open(disk).expect("open");
            assert_eq!(read(&fs, "kept").expect("read"), kept);
            assert_eq!(read(&fs, &path).expect("read"), content(len, 5 << 20));
            disk = fs.into_disk();
        }
    }
}

#[test]
fn a_process_killed_while_it_grows_leaves_the_old_or_the_new_size() {
    let (old, new) = (120 << 20, 390 << 20);
    let disk = Sparse { len: old, blocks: BTreeMap::new() };
    let mut fs = FileSystem::format(disk, "hfl", NOW).expect("format");
    save(&mut fs, "kept", &content(1, 1 << 20));
    let mut disk = fs.close().expect("close");
    disk.len = new;
    let writes = Writes::default();
    let recorder = Recorder { bytes: disk.clone(), writes: writes.clone() };
    let mut fs = FileSystem::open_writable(recorder).expect("open");
    assert_eq!(fs.grow().expect("grows"), new - old);
    drop(fs);
    let mut seen = [0; 2];
    let writes = writes.borrow();
    for (index, (at, bytes)) in writes.iter().chain([&(0, Vec::new())]).enumerate() {
        let reading = FileSystem::open(disk.clone()).expect("opens for reading");
        let mut fs = FileSystem::open_writable(disk.clone()).expect("opens after any write");
        assert_eq!(fs.len(), reading.len());
        assert!([old, new].contains(&fs.len()), "after write {index}: {}", fs.len());
        seen[usize::from(fs.len() > old)] += 1;
        assert_eq!(read(&fs, "kept").expect("read"), content(1, 1 << 20));
        // e2fsck replays by itself to what passes it.
        disk.replayed_by_e2fsck();
        fs.grow().expect("goes on");
        assert_eq!(fs.len(), new);
        fs.close().expect("close").check();
        disk.write_at(bytes, *at).expect("write");
    }
    assert!(seen.iter().all(|&count| count > 1), "{seen:?}");
}

#[test]
fn tables_and_logs_that_leave_no_room_are_refused_before_anything_is_written() {
    let fs = FileSystem::format(vec![0; 8 << 20], "hfl", NOW).expect("format");
    let image = fs.close().expect("close");

    // Groups of 256 blocks with tables of 2048.
    let mut small = image.clone();
    layout::put32(&mut small, SUPERBLOCK_AT as usize + 32, 256);
    layout::put32(&mut small, SUPERBLOCK_AT as usize + 40, 32768);
    small.resize(16 << 20, 0);
    let mut fs = FileSystem::open_writable(small).expect("not looked at yet");
    assert!(matches!(fs.grow(), Err(Error::FileSystem(_))));

    // A log of one block behind its superblock.
    let mut short = image;
    let magic = [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 4];
    let at = short.chunks(4096).position(|block| block.starts_with(&magic)).expect("a log") * 4096;
    short[at + 16..at + 20].copy_from_slice(&2u32.to_be_bytes());
    let mut fs = FileSystem::open_writable(short).expect("not looked at yet");
    assert!(matches!(fs.make_directory("model", NOW), Err(Error::Refused(_))));
}
