//! The key that signs passports, in a volume: sealed there, used again after a restart, refused where it was changed;
//! and the passport that the best model has in the middle of a job.

use std::fs;
use std::path::{Path, PathBuf};

use hfl::passport::key::{self, PassportKey};
use hfl::passport::{PUBLIC_KEY, TRAINING};
use hfl::training::checkpoint::{self, BEST_FILE, DATA_FILE};
use hfl::training::store::{Access, Progress, Store};
use luks::Passphrase;
use zeroize::Zeroizing;

use crate::passport::verify;
use crate::processes::{Cast, Dir, Process};
use crate::secrets::volume;

const WORD: &str = "a word";

fn open(path: &Path, access: Access) -> Store {
    Store::volume(path, &Passphrase::from_bytes(WORD.as_bytes()), access).expect("authentic")
}

/// Copies the files of a volume, as `hfl luks export --files` does.
fn copied(volume: &Path, dir: &Dir, name: &str) -> PathBuf {
    let (store, out) = (open(volume, Access::Read), dir.path(name));
    fs::create_dir(&out).expect("a directory");
    for name in store.names().expect("names") {
        let bytes = store.read(&name).expect("authentic").expect("a file");
        fs::write(out.join(name), bytes).expect("write");
    }
    out
}

/// Writes other bytes in the place of the sealed key, as who has the volume's key could.
fn replace_key(volume: &Path, bytes: &[u8]) {
    let mut store = open(volume, Access::Write);
    let (_, found) = checkpoint::load(&store, DATA_FILE).expect("whole").expect("a checkpoint");
    let progress = Progress { job: found.job.digest(), step: found.state.step };
    store.save(key::FILE, progress, &|out| out.write_all(bytes)).expect("written");
    store.close().expect("closed");
}

#[test]
fn a_sealed_key_outlives_a_restart_and_signs_for_the_best_model_meanwhile() {
    let dir = Dir::new("sealed-key");
    let (path, word) = (dir.path("model.luks"), dir.path("word"));
    volume(&path, WORD);
    fs::write(&word, WORD).expect("write");
    let cast = Cast::new(&dir, "unused");
    let texts = [&path, &word].map(|path| path.to_str().expect("UTF-8"));
    let options = [
        ("--model", "resnet18"),
        ("--batch-size", "16"),
        ("--evaluate-every", "1"),
        ("--volume", texts[0]),
        ("--key-file", texts[1]),
    ];
    let start = || cast.start("ps0", &options);
    let workers =
        |pause| ["worker0", "worker1"].map(|role| cast.start(role, &[("--pause-ms", pause)]));
    let end_of = |role: Process| {
        role.terminate();
        role.end()
    };

    // Two steps are an epoch: after the first there is a best model.
    let (slow, ps0) = (workers("300"), start());
    ps0.wait_for("step: 2,");
    assert_eq!(end_of(ps0).0, 1);
    slow.into_iter().for_each(|worker| drop(end_of(worker)));
    let middle = copied(&path, &dir, "middle");
    let said = verify(&middle, &[]).unwrap_or_else(|why| panic!("{why}"));
    for part in [
        "model model.best-data: resnet18",
        "not signed history.json, model.ckpt-data, ",
        "of the parameters in model.best-data",
        "of 30 test images right after step ",
    ] {
        assert!(said.contains(part), "{part} not in: {said}");
    }
    let sealed = fs::read(middle.join(key::FILE)).expect("a sealed key");
    assert!(PassportKey::parse(Zeroizing::new(sealed.clone())).is_err(), "not in the clear");
    let public = fs::read(middle.join(PUBLIC_KEY)).expect("a key");
    let mut best = fs::read(middle.join(BEST_FILE)).expect("a model");
    best.last_mut().into_iter().for_each(|byte| *byte ^= 1);
    fs::write(middle.join(BEST_FILE), best).expect("write");
    let why = verify(&middle, &[]).expect_err("another model");
    assert_eq!(why, "model.best-data: not the file that was signed");

    let mut changed = sealed.clone();
    changed[20] ^= 1;
    for wrong in [&changed[..], &sealed[..11], b"-"] {
        replace_key(&path, wrong);
        let (code, stderr) = start().end();
        let named = "passport.key: not sealed by this volume's key";
        assert!(code == 1 && stderr.contains(named), "{stderr}");
    }
    replace_key(&path, &sealed);
    let (ps0, quick) = (start(), workers("0"));
    cast.finish(&ps0, quick.into());
    let (code, stderr) = ps0.end();
    assert_eq!(code, 0, "{stderr}");
    let end = copied(&path, &dir, "end");
    verify(&end, &[]).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(fs::read(end.join(PUBLIC_KEY)).expect("a key"), public, "the same key");
    assert_ne!(fs::read(end.join(TRAINING)).ok(), fs::read(middle.join(TRAINING)).ok());
    assert_eq!(fs::read(end.join(key::FILE)).expect("a file"), b"", "it is of no more use");
}
