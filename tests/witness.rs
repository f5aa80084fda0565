//! Volumes that were set back: the secret service that gave their passphrase knows of a later step.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use hfl::training::store::{Access, Store};
use luks::Passphrase;

use crate::processes::{Cast, Dir, Process};
use crate::secrets::{Serving, volume};

const WORD: &str = "a word";
/// Where the data begins, and what is at its start: tables of inodes, the directories, the log.
const METADATA: std::ops::Range<usize> = 16 << 20..22 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Bytes of a volume.
fn part(path: &Path, range: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = vec![0; range.len()];
    let file = File::open(path).expect("a volume");
    file.read_exact_at(&mut bytes, range.start as u64).expect("read");
    bytes
}

fn step(path: &Path) -> Option<u64> {
    let store = Store::volume(path, &Passphrase::from_bytes(WORD.as_bytes()), Access::Read);
    let store = store.expect("authentic");
    let found = hfl::training::checkpoint::load(&store, "model.ckpt-data").expect("whole");
    found.map(|(_, checkpoint)| checkpoint.state.step)
}

#[test]
fn a_volume_whose_older_blocks_were_put_back_is_refused() {
    let dir = Dir::new("witness");
    let path = dir.path("model.luks");
    volume(&path, WORD);
    let service = Serving::start(&dir, &format!(r#"{{"hfl-tdx-coco-app":"{WORD}"}}"#));
    let cast = Cast::new(&dir, "unused");
    let options = [
        ("--volume", text(&path)),
        ("--secret-service", &service.address),
        ("--checkpoint-every", "1"),
    ];
    let start = || Process::start(&cast.words("ps0", &options), "info");
    let fresh = part(&path, METADATA);
    let workers = ["worker0", "worker1"].map(|role| cast.start(role, &[("--pause-ms", "300")]));
    let ps0 = start();
    ps0.wait_for("step: 2,");
    ps0.terminate();
    let (code, stderr) = ps0.end();
    assert!(code == 1 && stderr.contains("the secret service knows of step"), "{stderr}");
    let early = step(&path).expect("a checkpoint");
    let older = dir.path("older.luks");
    fs::copy(&path, &older).expect("copy");
    let ps0 = start();
    ps0.wait_for(&format!("step: {},", early + 2));
    ps0.terminate();
    let (code, stderr) = ps0.end();
    assert!(code == 1 && stderr.contains("the secret service knows of step"), "{stderr}");
    let late = step(&path).expect("a checkpoint");
    assert!(late > early);

    // No integrity, so older tables are as good as newer ones: no model seems to be there.
    let newest = dir.path("newest.luks");
    fs::copy(&path, &newest).expect("copy");
    let file = File::options().write(true).open(&path).expect("a volume");
    file.write_all_at(&fresh, METADATA.start as u64).expect("put back");
    assert_eq!(step(&path), None);
    let told = format!("the secret service was told of {late}: it was set back");
    let refused = |of: u64| {
        let (code, stderr) = start().end();
        assert!(code == 1 && stderr.contains(&told), "{stderr}");
        assert!(stderr.contains(&format!("is of step {of},")), "{stderr}");
    };
    refused(0);
    // All of an older state is authentic, header and manifest included.
    fs::copy(&older, &path).expect("copy");
    assert_eq!(step(&path), Some(early));
    refused(early);

    // What it was last goes on.
    fs::copy(&newest, &path).expect("copy");
    // Whoever was connected to one that could not begin has heard so and ended.
    for worker in workers {
        worker.terminate();
        worker.end();
    }
    let workers = ["worker0", "worker1"].map(|role| cast.start(role, &[]));
    let ps0 = start();
    cast.finish(&ps0, workers.into());
    assert_eq!(ps0.end().0, 0);
    let audit = service.end().1;
    assert!(audit.contains("\"event\":\"witnessed\""), "{audit}");
}
