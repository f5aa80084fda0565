//! Crashes at every moment of a job with three checkpoints: the volume opens, the file system is whole, and the
//! last checkpoint that the job was told of is there (or the one that it was saving).
//!
//! A process that is killed leaves a prefix of its writes, the last one torn at any sector. A machine that loses
//! power keeps, of what was written since the last barrier, any part. Both are played over plain and over
//! authenticated volumes, through opening for reading, recovery, a crash within recovery, and `e2fsck -fn`.

mod cuts;
mod disk;
mod keys;
mod resize;
#[path = "../shared/rewritten.rs"]
mod rewritten;
mod unnamed;

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::process::Command;
use std::rc::Rc;

use cuts::{all_losses, kills, random_losses};
use disk::{Layered, SECTOR};
use luks::Error;
use luks::disk::Disk;
use luks::encrypted::Encrypted;
use luks::ext4::{FileSystem, NewFile};
use luks::integrity::Authenticated;

const NOW: u32 = 1_800_000_000;
const MIB: usize = 1 << 20;
/// Bytes of a block of the file system.
const BLOCK: usize = 4096;

/// What is under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Integrity(u32),
}

impl Kind {
    fn open(self, disk: Layered, writable: bool) -> Result<Box<dyn Disk>, Error> {
        let key: Vec<u8> = (0..96).collect();
        Ok(match self {
            Self::Plain => Box::new(Encrypted::new(disk, &key[..64], 4096)),
            Self::Integrity(sector) => Box::new(Authenticated::open(disk, &key, sector, writable)?),
        })
    }

    /// The first sector behind what only the journal of dm-integrity uses.
    fn first_place(self, disk: &Layered) -> u64 {
        let mut superblock = [0; SECTOR as usize];
        disk.read_at(&mut superblock, 0).expect("read");
        let sections = u32::from_le_bytes(superblock[12..16].try_into().expect("four"));
        match self {
            Self::Plain => 0,
            Self::Integrity(512) => 8 + u64::from(sections) * 88,
            Self::Integrity(_) => 8 + u64::from(sections) * 264,
        }
    }
}

/// A job: how much its checkpoints have, on how large a disk.
#[derive(Clone, Copy, Debug)]
struct Job {
    kind: Kind,
    disk_len: usize,
    data_len: usize,
}

fn content(step: u64, len: usize) -> Vec<u8> {
    let mut random = Random(step + 1);
    (0..len + step as usize * 5000).map(|_| random.next() as u8).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn read(fs: &FileSystem<Box<dyn Disk>>, path: &str) -> Result<Vec<u8>, Error> {
    let file = fs.file(path)?;
    let mut bytes = vec![0; file.len() as usize];
    fs.read_at(&file, &mut bytes, 0).map(|()| bytes)
}

fn save(fs: &mut FileSystem<Box<dyn Disk>>, step: u64, len: usize) {
    let mut files = Vec::new();
    for (path, bytes) in
        [("model/data", content(step, len)), ("model/manifest", format!("{step}").into_bytes())]
    {
        let mut file = NewFile::default();
        bytes.chunks(100_001).try_for_each(|part| fs.append(&mut file, part)).expect("room");
        files.push((path, file));
    }
    fs.commit(files, NOW).expect("commit");
}

impl Job {
    /// A disk with step 0, and all that happens to it while steps 1 to 3 are saved.
    fn run(self) -> Layered {
        let mut noise = vec![0; self.disk_len];
        noise.chunks_mut(8).zip(0..).for_each(|(part, at)| {
            part.copy_from_slice(&Random(at).next().to_le_bytes()[..part.len()]);
        });
        let disk = Layered::new(Rc::new(noise));
        if let Kind::Integrity(sector) = self.kind {
            let key: Vec<u8> = (0..96).collect();
            Authenticated::format(disk.clone(), &key, sector).expect("format");
        }
        let volume = self.kind.open(disk.clone(), true).expect("open");
        let mut fs = FileSystem::format(volume, "crash", NOW).expect("format");
        fs.make_directory("model", NOW).expect("directory");
        save(&mut fs, 0, self.data_len);
        drop(fs.close().expect("close"));
        let disk = disk.flattened().recording();
        let volume = self.kind.open(disk.clone(), true).expect("open");
        let mut fs = FileSystem::open_writable(volume).expect("ext4");
        for step in 1..=3 {
            save(&mut fs, step, self.data_len);
            disk.saved(step);
        }
        drop(fs.close().expect("close"));
        disk
    }
}

/// Looks at what crashes left.
struct Witness {
    job: Job,
    /// What `e2fsck` has seen.
    checked: HashSet<[u8; 32]>,
    states: usize,
    /// Of the states that `e2fsck` has seen, those with blocks that do not authenticate.
    half_written: usize,
    /// How many states had which step.
    steps: [usize; 4],
}

impl Witness {
    fn new(job: Job) -> Self {
        Self { job, checked: HashSet::new(), states: 0, half_written: 0, steps: [0; 4] }
    }

    /// Opens what a crash left, for reading and for writing; the disk after recovery, with what happened to it.
    fn look(&mut self, state: &Layered, steps: RangeInclusive<u64>) -> Layered {
        self.states += 1;
        let reading = state.recording();
        let volume = self.job.kind.open(reading.clone(), false).expect("opens for reading");
        let fs = FileSystem::open(volume).expect("a file system");
        let step = self.step(&fs);
        assert!(steps.contains(&step), "{:?}: step {step}, not {steps:?}", self.job);
        assert!(reading.events().is_empty(), "reading writes");

        let recovered = state.recording();
        let volume = self.job.kind.open(recovered.clone(), true).expect("opens");
        let fs = FileSystem::open_writable(volume).expect("recovers");
        assert_eq!(self.step(&fs), step, "{:?}: recovery changes the step", self.job);
        drop(fs.close().expect("close"));
        self.steps[step as usize] += 1;
        if self.checked.insert(recovered.digest_from(self.job.kind.first_place(state))) {
            self.check(&recovered);
        }
        recovered
    }

    /// The step whose files are there, all of them.
    fn step(&self, fs: &FileSystem<Box<dyn Disk>>) -> u64 {
        let manifest = read(fs, "model/manifest").expect("a manifest");
        let step = String::from_utf8(manifest).expect("text").parse().expect("a step");
        let data = read(fs, "model/data").expect("data");
        assert!(data == content(step, self.job.data_len), "{:?}: other data", self.job);
        step
    }

    /// `e2fsck` finds nothing, whatever is in the blocks that do not authenticate: they are free, as all that files
    /// have was read.
    fn check(&mut self, disk: &Layered) {
        let volume = self.job.kind.open(disk.copy(), false).expect("opens");
        let mut plain = vec![0; volume.len() as usize];
        if volume.read_at(&mut plain, 0).is_err() {
            self.half_written += 1;
            for (at, block) in (0..).step_by(BLOCK).zip(plain.chunks_mut(BLOCK)) {
                if volume.read_at(block, at).is_err() {
                    block.fill(0xa5);
                }
            }
        }
        e2fsck(&plain);
    }

    fn report(&self, what: &str) {
        println!(
            "{:?}, {what}: {} states, steps 0 to 3 found {:?} times, e2fsck over {}, {} with content half written",
            self.job.kind,
            self.states,
            self.steps,
            self.checked.len(),
            self.half_written,
        );
        assert_eq!(self.half_written > 0, self.job.kind != Kind::Plain);
        assert!(self.steps.iter().all(|&count| count > 0), "a step that was never found");
    }
}

/// Fails unless `e2fsck` finds nothing.
fn e2fsck(plain: &[u8]) {
    let name = format!("hfl-crash-{}-{:p}", std::process::id(), plain);
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, plain).expect("write");
    let output = Command::new("/sbin/e2fsck").arg("-fn").arg(&path).output();
    let output = output.unwrap_or_else(|e| panic!("e2fsck: {e}; apt-get install e2fsprogs"));
    std::fs::remove_file(&path).expect("remove");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
}

/// What may be found when the job was told of `saved` last.
fn steps_after(saved: u64) -> RangeInclusive<u64> {
    saved..=(saved + 1).min(3)
}

/// With sectors of 4096 bytes the journal has one section here: every commit overwrites the one before.
const SMALL: usize = 8 * MIB;

fn jobs(disk_len: usize, data_len: usize) -> [Job; 3] {
    [Kind::Plain, Kind::Integrity(4096), Kind::Integrity(512)].map(|kind| Job {
        kind,
        disk_len,
        data_len,
    })
}

#[test]
fn a_kill_within_any_write_leaves_the_last_checkpoint() {
    for job in jobs(SMALL, 10_000) {
        let disk = job.run();
        let mut witness = Witness::new(job);
        kills(&disk, |state, saved| {
            witness.look(state, steps_after(saved));
        });
        witness.report("killed within every write");
    }
}

#[test]
fn a_disk_that_loses_any_unflushed_writes_keeps_the_last_checkpoint() {
    for job in jobs(SMALL, 3000) {
        let disk = job.run();
        let mut witness = Witness::new(job);
        all_losses(&disk, |state, saved| {
            witness.look(state, steps_after(saved));
        });
        witness.report("power lost, every subset of the writes");
    }
}

/// With a journal of two sections (eight with sectors of 512 bytes), and with one of nine.
#[test]
fn a_thousand_power_losses_in_larger_jobs_keep_the_last_checkpoint() {
    let large = Job { kind: Kind::Integrity(4096), disk_len: 40 * MIB, data_len: 400_000 };
    for job in jobs(SMALL + 4 * MIB, 700_000).into_iter().chain([large]) {
        let disk = job.run();
        let mut witness = Witness::new(job);
        let mut random = Random(7);
        random_losses(&disk, 1000, &mut random, |state, saved, random| {
            let recovered = witness.look(state, steps_after(saved));
            // Power fails again while the volume is opened.
            let steps = steps_after(saved);
            random_losses(&recovered, 1, random, |state, _, _| {
                witness.look(state, steps.clone());
            });
        });
        witness.report("power lost 1,000 times, and in each recovery");
    }
}
