//! `cargo bench -p luks --bench checkpoint`: a checkpoint saved as a role saves it, each in the place of the one
//! before, and read again; in a volume with integrity and in a plain one, in turns.

mod timing;

use luks::ext4::{FileSystem, NewFile};
use luks::{Hash, KdfCost, Options, Passphrase, Volume, create};

use timing::{median, milliseconds};

const ROUNDS: usize = 7;
/// Bytes of a checkpoint of ResNet-50: parameters and velocities.
const CHECKPOINT: usize = 188_000_000;

fn main() {
    let folder = std::env::temp_dir().join(format!("hfl-checkpoint-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("create");
    let content: Vec<u8> = (0..CHECKPOINT as u64).map(|at| ((at * at) >> 7) as u8).collect();
    let mut volumes = [false, true].map(|integrity| {
        let cost = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 };
        let options = Options { cost, integrity, preallocate: true, ..Options::new(640 << 20) };
        let path = folder.join(if integrity { "integrity" } else { "plain" });
        let volume = create(&path, None, &options, &[Passphrase::from_bytes(b"a key")], true);
        FileSystem::format(volume.expect("create"), "", 1).expect("format")
    });
    let mut rows: [Vec<f64>; 4] = Default::default();
    // The first of each is not counted: blocks that the disk has not seen yet.
    for round in 0..=ROUNDS {
        for (at, fs) in volumes.iter_mut().enumerate() {
            let saved = milliseconds(|| save(fs, &content));
            let read = milliseconds(|| assert!(read(fs) == content));
            if round > 0 {
                rows[2 * at].push(saved);
                rows[2 * at + 1].push(read);
            }
        }
    }
    let [plain, plain_read, tagged, tagged_read] = rows.map(median);
    println!("a checkpoint of {} MB, ms (median of {ROUNDS})", CHECKPOINT / 1_000_000);
    println!("  save  plain {plain:6.0}   integrity {tagged:6.0}   {:.2} times", tagged / plain);
    println!(
        "  read  plain {plain_read:6.0}   integrity {tagged_read:6.0}   {:.2} times",
        tagged_read / plain_read
    );
    std::fs::remove_dir_all(&folder).expect("remove");
}

fn save(fs: &mut FileSystem<Volume>, content: &[u8]) {
    let mut file = NewFile::default();
    content.chunks(1 << 16).try_for_each(|part| fs.append(&mut file, part)).expect("room");
    fs.commit(vec![("data", file)], 1).expect("commit");
}

fn read(fs: &FileSystem<Volume>) -> Vec<u8> {
    let file = fs.file("data").expect("a file");
    let mut bytes = vec![0; file.len() as usize];
    fs.read_at(&file, &mut bytes, 0).expect("read");
    bytes
}
