//! Roles as process 1 in an empty root: asked to end they leave a checkpoint, and orphans are collected.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::geteuid;

use crate::processes::{Cast, Dir, Process, undisturbed};

/// What makes namespaces without root.
fn unprivileged(flags: &'static [&'static str]) -> &'static [&'static str] {
    if geteuid().is_root() { &[] } else { flags }
}

/// The process inside its namespace, as it is known outside.
fn inside(process: &Process) -> u32 {
    let start = Instant::now();
    loop {
        let pid = process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        if let Some(child) = children.expect("/proc").split_whitespace().next() {
            return child.parse().expect("a number");
        }
        assert!(start.elapsed() < Duration::from_secs(10), "no process 1");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn children(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("/proc");
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children"));
    tasks.filter_map(|task| of(task.ok()?).ok()).collect()
}

fn signal(pid: u32, name: &str) {
    let killed = Command::new("kill").args(["-s", name, &pid.to_string()]).status().expect("kill");
    assert!(killed.success());
}

/// Starts a role as process 1 of a root that holds the program and its data, nothing else.
fn start(cast: &Cast, root: &Path, role: &str, more: &[(&'static str, &str)]) -> Process {
    let program = root.join("hfl");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_hfl"), &program).expect("program");
    }
    let inside = [("--data", "/data"), ("--model-dir", "/model")];
    let mut words = vec!["--pid", "--fork", "--kill-child"];
    words.extend(unprivileged(&["--map-root-user"]));
    let root = format!("--root={}", root.display());
    let words: Vec<String> =
        words.into_iter().chain([root.as_str(), "/hfl"]).map(Into::into).collect();
    let args = cast.words(role, &[&inside, more].concat());
    Process::start_program("unshare", &[words, args].concat(), "warn")
}

#[test]
fn process_1_ends_in_good_order_and_goes_on_from_there() {
    let dir = Dir::new("first");
    let calm = undisturbed(&dir);
    let root = dir.path("root");
    fs::create_dir_all(root.join("data")).expect("root");
    for file in ["data_batch_1.bin", "test_batch.bin"] {
        fs::copy(dir.path("data").join(file), root.join("data").join(file)).expect("data");
    }
    let cast = Cast::new(&dir, "outside");
    let address = cast.server().replace("localhost", "127.0.0.1");
    // Only a signal makes a checkpoint before the end.
    let options = [("--ps-hosts", address.as_str()), ("--checkpoint-every", "1000")];
    let slow = [("--ps-hosts", address.as_str()), ("--pause-ms", "200")];
    let ps0 = start(&cast, &root, "ps0", &options);
    let first = inside(&ps0);
    let worker0 = cast.start("worker0", &slow);
    let worker1 = start(&cast, &root, "worker1", &slow);

    // A child of nobody, as what was executed in a container leaves them.
    let mut enter = Command::new("nsenter");
    enter.arg("--target").arg(first.to_string()).arg("--pid");
    enter.args(unprivileged(&["--user", "--preserve-credentials"]));
    let left = enter.args(["sh", "-c", "sleep 1 &"]).status().expect("nsenter");
    assert!(left.success());
    assert!(!children(first).is_empty(), "the orphan is a child of process 1");
    ps0.wait_for("step: 2,");
    let start_of_wait = Instant::now();
    while !children(first).is_empty() {
        assert!(start_of_wait.elapsed() < Duration::from_secs(20), "a zombie stays");
        std::thread::sleep(Duration::from_millis(50));
    }

    let asked = Instant::now();
    signal(first, "TERM");
    let (code, stderr) = ps0.end();
    assert!(
        code == 1 && stderr.contains("stopped by a signal, the checkpoint is of step"),
        "{stderr}"
    );
    assert!(asked.elapsed() < Duration::from_secs(25), "the grace period of a pod is 30 s");
    signal(inside(&worker1), "INT");
    let (code, stderr) = worker1.end();
    assert!(code == 1 && stderr.contains("stopped by a signal"), "{stderr}");

    let ps0 = start(&cast, &root, "ps0", &options);
    let worker1 = start(&cast, &root, "worker1", &slow);
    let step = ps0.wait_for("step: ");
    assert!(!step.starts_with("step: 0,"), "{step}");
    assert_eq!(cast.finish(&ps0, vec![worker0, worker1]), calm);
}
