//! Faults of machines between real processes: what each side says, and that the job goes on as its options say.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::cli::hfl;
use crate::processes::{Cast, Dir, Process, undisturbed};

fn signal(process: &Process, signal: Signal) {
    let id = i32::try_from(process.id()).expect("an id");
    kill_process(Pid::from_raw(id).expect("an id"), signal).expect("a signal");
}

/// A job that closes rounds without one of its two workers after a second.
const QUORUM: [(&str, &str); 3] = [("--quorum", "1"), ("--deadline", "1"), ("--steps", "12")];

#[test]
fn a_worker_that_is_stopped_is_left_out_comes_back_and_the_log_repeats_it() {
    let dir = Dir::new("stopped");
    let cast = Cast::new(&dir, "model");
    let ps0 = Process::start(&cast.words("ps0", &QUORUM), "info");
    let pause = [("--pause-ms", "300")];
    let worker0 = cast.start("worker0", &pause);
    let worker1 = cast.start("worker1", &pause);
    ps0.wait_for("step: 1,");
    signal(&worker1, Signal::STOP);
    ps0.wait_for("step: 4,");
    signal(&worker1, Signal::CONT);
    let hash = cast.finish(&ps0, vec![worker0, worker1]);
    let (code, said) = ps0.end();
    assert_eq!(code, 0, "{said}");
    for part in ["worker1: left out since step", "worker1: takes part from step"] {
        assert!(said.contains(part), "'{part}' not in: {said}");
    }
    let path = |name: &str| dir.path(name).to_str().expect("UTF-8").to_owned();
    let [model, data] = ["model", "data"].map(path);
    let shards = [0, 1].map(|part| format!("{data}@{part}/2"));
    let words = ["replay", "--threads", "1", "--model-dir", &model, &shards[0], &shards[1]];
    let output = hfl(&words);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains(&hash), "{out}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_checkpoint_that_takes_long_holds_up_no_step_and_a_kill_within_it_loses_nothing() {
    let dir = Dir::new("slow-disk");
    let calm = undisturbed(&dir);
    let cast = Cast::new(&dir, "slow");
    // Nobody reads from it, so the first checkpoint is never written to its end.
    let pipe = dir.path("slow").join("model.ckpt-data.tmp");
    fs::create_dir_all(dir.path("slow")).expect("create");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let often = [("--checkpoint-every", "1")];
    let ps0 = cast.start("ps0", &often);
    let workers = ["worker0", "worker1"].map(|role| cast.start(role, &[]));
    // Of parameters that came after the checkpoint was begun.
    workers.iter().for_each(|worker| drop(worker.wait_for("step: 1,")));
    ps0.kill();
    fs::remove_file(pipe).expect("the pipe");
    let ps0 = cast.start("ps0", &often);
    assert_eq!(cast.finish(&ps0, workers.into()), calm);
    assert_eq!(ps0.end().0, 0);
}

#[test]
fn a_worker_that_leaves_for_good_is_named_and_the_job_goes_on_without_it() {
    let dir = Dir::new("left");
    let cast = Cast::new(&dir, "model");
    let ps0 = Process::start(&cast.words("ps0", &QUORUM), "info");
    let worker0 = cast.start("worker0", &[("--pause-ms", "200")]);
    let worker1 = cast.start("worker1", &[("--pause-ms", "200")]);
    ps0.wait_for("step: 1,");
    worker1.kill();
    cast.finish(&ps0, vec![worker0]);
    let (code, said) = ps0.end();
    assert_eq!(code, 0, "{said}");
    // On a busy machine it may have been late before, and come back; once it is gone that is said once.
    let [out, back] = ["worker1: left out since step", "worker1: takes part from step"]
        .map(|part| said.matches(part).count());
    assert_eq!(out, back + 1, "{said}");
}

#[test]
fn a_worker_that_joins_late_takes_part_from_then_on() {
    let dir = Dir::new("joins-late");
    let cast = Cast::new(&dir, "model");
    let ps0 = Process::start(&cast.words("ps0", &QUORUM), "info");
    // Slow enough that the other one is there long before the end.
    let worker0 = cast.start("worker0", &[("--pause-ms", "1500")]);
    ps0.wait_for("step: 2,");
    let worker1 = cast.start("worker1", &[]);
    cast.finish(&ps0, vec![worker0, worker1]);
    let (code, said) = ps0.end();
    assert_eq!(code, 0, "{said}");
    assert_eq!(said.matches("worker1: takes part from step").count(), 1, "{said}");
}

#[test]
fn a_server_that_cannot_begin_tells_a_worker_that_has_connected_why() {
    let dir = Dir::new("unready");
    let cast = Cast::new(&dir, "model");
    // A directory in the place of a file: it cannot be replaced.
    fs::create_dir_all(dir.path("model/model.ckpt-meta/in-the-way")).expect("create");
    let worker = cast.start("worker1", &[]);
    let start = Instant::now();
    let (code, said) = cast.start("ps0", &[]).end();
    assert!(code == 1 && said.contains("model.ckpt-meta"), "{said}");
    let (code, said) = worker.end();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("it could not begin: it cannot use the place"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(120), "no more than a handshake is waited for");
}
