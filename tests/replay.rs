//! `hfl replay`: rounds of real jobs computed again, and what is said of a log, data or a model that were changed.

use std::fs;
use std::path::Path;
use std::process::Output;

use hfl::training::rounds::RoundLog;

use crate::cli::hfl;
use crate::processes::{Cast, Dir, STEPS};

/// Replays the job in `model` with both workers' data, or with other options.
pub(crate) fn replay(dir: &Dir, model: &str, more: &[&str]) -> Output {
    let path = |name: &str| dir.path(name).to_str().expect("UTF-8").to_owned();
    let (model, data) = (path(model), path("data"));
    let shards = [0, 1].map(|part| format!("{data}@{part}/2"));
    let words = ["replay", "--threads", "1", "--model-dir", &model, &shards[0], &shards[1]];
    hfl(&[&words[..], more].concat())
}

#[track_caller]
pub(crate) fn same(output: &Output, rounds: u64, hash: &str) {
    let [out, said] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(out.contains(&format!("the same in all {rounds} rounds")), "{out}");
    assert!(out.contains(hash), "{out}, and ps0 said {hash}");
}

#[track_caller]
fn differs(output: &Output, code: i32, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "'{part}' not in: {said}");
    }
}

/// Rewrites the round log; says what it was.
fn forge(path: &Path, change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let bytes = fs::read(path).expect("a log");
    let mut log = serde_json::from_slice(&bytes).expect("JSON");
    change(&mut log);
    fs::write(path, serde_json::to_vec(&log).expect("JSON")).expect("write");
    bytes
}

#[test]
fn a_job_is_replayed_from_its_log_and_what_was_changed_is_named() {
    let dir = Dir::new("replay");
    let cast = Cast::new(&dir, "model");
    let exchange = [("--wire", "int8"), ("--local-steps", "2")];
    let ps0 = cast.start("ps0", &exchange);
    let workers = ["worker0", "worker1"].map(|role| cast.start(role, &[]));
    let hash = cast.finish(&ps0, workers.into());
    same(&replay(&dir, "model", &[]), STEPS / 2, &hash);
    same(&replay(&dir, "model", &["--from", "0", "--to", "4"]), 2, "steps 0 to 4");

    for (more, code, parts) in [
        (&["--to", "3"][..], 2, &["--to 3", "step 0, 2 and so on, up to 8"][..]),
        (&["--from", "8"], 2, &["--from 8"]),
        (&["--from", "2"], 1, &["no checkpoint of that step", "--checkpoint"]),
        (&["--init", "/nonexistent"], 1, &["/nonexistent"]),
        (&["one-too-many"], 2, &["data of 3 workers, the job had 2"]),
    ] {
        differs(&replay(&dir, "model", more), code, parts);
    }

    // A checksum, samples, and who lost what it had carried over, each in the third round.
    let log = dir.path("model/rounds.json");
    let was = forge(&log, |log| {
        let check = &mut log["runs"][1]["checks"][1];
        *check = (check.as_u64().expect("a checksum") ^ 1).into();
    });
    let runs = RoundLog::parse(&was).expect("a log").runs().len();
    assert_eq!(runs, 2, "the first round is fresh, the others are not");
    let third = "the first round that differs is that of steps 4 to 5";
    differs(&replay(&dir, "model", &[]), 1, &[third, "others than those logged"]);
    fs::write(&log, &was).expect("write");
    forge(&log, |log| log["runs"][1]["workers"][1]["samples"] = 7.into());
    differs(&replay(&dir, "model", &[]), 1, &["steps 2 to 3", "worker1 is logged with 7 samples"]);
    fs::write(&log, &was).expect("write");
    forge(&log, |log| log["runs"][1]["workers"][0]["fresh"] = true.into());
    differs(
        &replay(&dir, "model", &[]),
        1,
        &["the first round that differs is that of steps 2 to 3"],
    );
    fs::write(&log, &was).expect("write");

    let batch = dir.path("data/data_batch_1.bin");
    let mut bytes = fs::read(&batch).expect("data");
    // The second record, which is of worker1's part.
    bytes[3073 + 100] ^= 1;
    fs::write(&batch, &bytes).expect("write");
    differs(&replay(&dir, "model", &[]), 1, &["worker1", "is not what it trained on"]);
}

#[test]
fn a_replay_begins_with_a_copy_of_a_checkpoint() {
    let dir = Dir::new("replay-from");
    let cast = Cast::new(&dir, "model");
    let ps0 = cast.start("ps0", &[]);
    let workers = ["worker0", "worker1"].map(|role| cast.start(role, &[("--pause-ms", "400")]));
    // The checkpoint of step 3 is on the disk once the next step is told.
    ps0.wait_for("step: 3,");
    let copy = dir.path("copy");
    fs::copy(dir.path("model/model.ckpt-data"), &copy).expect("a checkpoint");
    let hash = cast.finish(&ps0, workers.into());
    let copy = copy.to_str().expect("UTF-8");
    same(&replay(&dir, "model", &["--from", "3", "--checkpoint", copy]), STEPS - 3, &hash);
    let wrong = ["--from", "2", "--checkpoint", copy];
    differs(&replay(&dir, "model", &wrong), 2, &["of step 3, not of --from 2"]);
}
