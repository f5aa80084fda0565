//! Real processes on loopback: equal final hash for any threads, slow workers and deaths; clear ends.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use hfl::data::synthetic;
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything; long before that something hangs.
const PATIENCE: Duration = Duration::from_secs(180);
pub(crate) const STEPS: u64 = 8;

/// A directory that goes away with the test.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hfl-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("data")).expect("create");
        std::fs::write(path.join("data/data_batch_1.bin"), synthetic::records(3, 64))
            .expect("data");
        std::fs::write(path.join("data/test_batch.bin"), synthetic::records(4, 30)).expect("data");
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // A left-over in the temporary directory harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A role as a process; ended with the test.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    stderr: Option<ChildStderr>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good as ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts the program; its log has this level.
    pub(crate) fn start<T: AsRef<OsStr>>(args: &[T], level: &str) -> Self {
        Self::start_program(env!("CARGO_BIN_EXE_hfl"), args, level)
    }

    /// Starts a program that will be ours.
    pub(crate) fn start_program<T: AsRef<OsStr>>(program: &str, args: &[T], level: &str) -> Self {
        // A shell's background job ignores signals, and so would what it starts: the tests run anywhere.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP,INT,TERM", program]).args(args);
        command.env("RUST_LOG", level).stdin(Stdio::null());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start hfl");
        let stdout = child.stdout.take().expect("a pipe");
        let stderr = child.stderr.take();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, stderr }
    }

    pub(crate) fn next_line(&self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("a role hangs"),
        }
    }

    /// Waits for a line that begins like this.
    pub(crate) fn wait_for(&self, prefix: &str) -> String {
        std::iter::from_fn(|| self.next_line())
            .find(|line| line.starts_with(prefix))
            .unwrap_or_else(|| panic!("ended without '{prefix}'"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, as a container's host does.
    pub(crate) fn terminate(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("a signal");
    }

    pub(crate) fn kill(mut self) {
        // SIGKILL on Unix: nothing is flushed, nobody is told.
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Exit code and everything on stderr.
    pub(crate) fn end(mut self) -> (i32, String) {
        let start = Instant::now();
        let mut stderr = String::new();
        while self.next_line().is_some() {}
        let mut pipe = self.stderr.take().expect("a pipe");
        pipe.read_to_string(&mut stderr).expect("UTF-8");
        let status = self.child.wait().expect("wait");
        assert!(start.elapsed() < PATIENCE);
        (status.code().expect("an exit code"), stderr)
    }
}

/// A job's processes.
pub(crate) struct Cast<'a> {
    dir: &'a Dir,
    port: u16,
    model: PathBuf,
}

impl<'a> Cast<'a> {
    pub(crate) fn new(dir: &'a Dir, model: &str) -> Self {
        Self { dir, port: free_port(), model: dir.path(model) }
    }

    /// Where ps0 listens.
    pub(crate) fn server(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Starts a role with the usual options, changed by `more`; an empty value makes a switch.
    pub(crate) fn start(&self, role: &str, more: &[(&'static str, &str)]) -> Process {
        Process::start(&self.words(role, more), "warn")
    }

    /// The arguments of a role.
    pub(crate) fn words(&self, role: &str, more: &[(&'static str, &str)]) -> Vec<String> {
        let path = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
        let mut options = BTreeMap::from([
            ("--role", role.to_owned()),
            ("--attestation", "sim".into()),
            ("--ps-hosts", self.server()),
            ("--steps", STEPS.to_string()),
            ("--batch-size", "4".into()),
            ("--lr", "0.01".into()),
            ("--checkpoint-every", "3".into()),
            ("--threads", "1".into()),
            ("--model-dir", path(self.model.clone())),
            ("--data", path(self.dir.path("data"))),
        ]);
        if let Some(index) = role.strip_prefix("worker") {
            options.insert("--shard", format!("{index}/2"));
            options.insert("--min-batch", "1".into());
        } else {
            // What is evaluated has tests of its own.
            options.insert("--evaluate-every", "0".into());
        }
        options.extend(more.iter().map(|&(name, value)| (name, value.to_owned())));
        let words = options.into_iter().flat_map(|(name, value)| {
            [Some(name.to_owned()), (!value.is_empty()).then_some(value)].into_iter().flatten()
        });
        words.collect()
    }

    /// Runs to the end and returns ps0's hash.
    pub(crate) fn finish(&self, ps0: &Process, workers: Vec<Process>) -> String {
        let hash = ps0.wait_for("parameters: sha256:");
        for worker in workers {
            worker.wait_for("Optimization finished.");
            let (code, stderr) = worker.end();
            assert_eq!(code, 0, "{stderr}");
        }
        hash
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("address").port()
}

/// The hash of an undisturbed run, and what it leaves.
pub(crate) fn undisturbed(dir: &Dir) -> String {
    let cast = Cast::new(dir, "model");
    // The workers come first: any start order will do.
    let workers = vec![cast.start("worker1", &[]), cast.start("worker0", &[])];
    let ps0 = cast.start("ps0", &[]);
    ps0.wait_for("Info: App: Verification completed successfully.");
    ps0.wait_for("step: 0, loss: ");
    ps0.wait_for("Optimization finished.");
    let hash = cast.finish(&ps0, workers);
    let (code, stderr) = ps0.end();
    assert_eq!(code, 0, "{stderr}");
    hash
}

#[test]
fn equal_jobs_have_equal_hashes_whatever_happens_on_the_way() {
    let dir = Dir::new("equal");
    let calm = undisturbed(&dir);

    let cast = Cast::new(&dir, "threads");
    let ps0 = cast.start("ps0", &[("--threads", "2")]);
    let workers = vec![
        cast.start("worker0", &[("--threads", "2")]),
        cast.start("worker1", &[("--threads", "3")]),
    ];
    assert_eq!(cast.finish(&ps0, workers), calm, "other numbers of threads");

    for (slow, model) in [("worker0", "slow0"), ("worker1", "slow1")] {
        let cast = Cast::new(&dir, model);
        let ps0 = cast.start("ps0", &[]);
        let pause = |role| [("--pause-ms", if role == slow { "120" } else { "0" })];
        let workers = ["worker0", "worker1"].map(|role| cast.start(role, &pause(role)));
        assert_eq!(cast.finish(&ps0, workers.into()), calm, "{slow} slowed down");
    }

    let cast = Cast::new(&dir, "deaths");
    let pause = [("--pause-ms", "100")];
    let ps0 = cast.start("ps0", &[]);
    let worker0 = cast.start("worker0", &pause);
    let worker1 = cast.start("worker1", &pause);
    ps0.wait_for("step: 1,");
    worker1.kill();
    let worker1 = cast.start("worker1", &pause);
    ps0.wait_for("step: 4,");
    ps0.kill();
    let ps0 = cast.start("ps0", &[]);
    // The checkpoint is of step 3 (after updates 0, 1 and 2).
    assert!(ps0.wait_for("step: ").starts_with("step: 3,"));
    worker0.kill();
    let worker0 = cast.start("worker0", &pause);
    assert_eq!(cast.finish(&ps0, vec![worker0, worker1]), calm, "after three deaths");
}

#[test]
fn twenty_deaths_at_random_moments_change_nothing() {
    let dir = Dir::new("deaths");
    let calm = undisturbed(&dir);
    let cast = Cast::new(&dir, "mortal");
    let roles = ["ps0", "worker0", "worker1"];
    // Averages are made beside the parameters.
    let options = [("--pause-ms", "250"), ("--ema", "0.9")];
    let of = |role: &str| if role == "ps0" { &options[..] } else { &options[..1] };
    let mut cast_of: Vec<Option<Process>> =
        roles.iter().map(|role| Some(cast.start(role, of(role)))).collect();
    for death in 0..20_u64 {
        std::thread::sleep(Duration::from_millis(60 + death * 7919 % 300));
        let victim = (death % 3) as usize;
        if cast_of[victim].as_mut().is_some_and(|p| p.child.try_wait().expect("wait").is_none()) {
            cast_of[victim].take().expect("alive").kill();
            cast_of[victim] = Some(cast.start(roles[victim], of(roles[victim])));
        }
    }
    let mut processes = cast_of.into_iter().flatten();
    let ps0 = processes.next().expect("ps0");
    assert_eq!(cast.finish(&ps0, processes.collect()), calm);
    // Parameters and averages of a life without deaths.
    crate::replay::same(&crate::replay::replay(&dir, "mortal", &[]), STEPS, &calm);
}

/// `hfl eval --mirrored` of an image and its mirror image: both get the mean of what each gets alone.
fn averaged_over_mirror_images(dir: &Dir, model: &str) {
    let records = std::fs::read(dir.path("data/test_batch.bin")).expect("records");
    let record = &records[..3073];
    let mirrored = record[1..].chunks_exact(32).flat_map(|row| row.iter().rev().copied());
    let both: Vec<u8> = record.iter().copied().chain([record[0]]).chain(mirrored).collect();
    std::fs::create_dir(dir.path("both")).expect("create");
    std::fs::write(dir.path("both/test_batch.bin"), both).expect("write");
    let text = |name: &str| dir.path(name).to_str().expect("UTF-8").to_owned();
    let (data, table) = (text("both"), text("table.csv"));
    let probabilities = |more: &[&str]| -> Vec<Vec<f64>> {
        let flags = ["eval", "--model-dir", model, "--data", &data, "--predictions", &table];
        let output = crate::cli::hfl(&[&flags[..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let table = std::fs::read_to_string(&table).expect("a table");
        let row =
            |line: &str| line.split(',').skip(3).map(|p| p.parse().expect("a number")).collect();
        table.lines().skip(1).map(row).collect()
    };
    let (plain, averaged) = (probabilities(&[]), probabilities(&["--mirrored"]));
    assert!(plain[0] != plain[1] && plain.len() == 2);
    for class in 0..10 {
        let mean = (plain[0][class] + plain[1][class]) / 2.0;
        for found in &averaged {
            assert!((found[class] - mean).abs() < 2e-6, "{plain:?}, {averaged:?}");
        }
    }
}

#[test]
fn a_saved_model_is_evaluated_and_another_job_does_not_overwrite_it() {
    let dir = Dir::new("eval");
    undisturbed(&dir);
    let (model, data) = (dir.path("model"), dir.path("data"));
    let (model, data) = (model.to_str().expect("UTF-8"), data.to_str().expect("UTF-8"));
    let output = crate::cli::hfl(&["eval", "--model-dir", model, "--data", data, "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((report["images"].as_u64(), report["step"].as_u64()), (Some(30), Some(STEPS)));
    let meta: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path("model/model.ckpt-meta")).expect("meta"))
            .expect("JSON");
    assert_eq!(meta["parameters"], 23_528_522);
    assert_eq!(meta["layers"].as_array().expect("layers").len(), 55);

    // The page, as often as asked for, but in nobody's place; and an event file with a record a step.
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let (page, events) = (dir.path("page.html"), dir.path("events"));
    let report = |out: &std::path::Path| {
        let (out, events) = (text(out), text(&events));
        crate::cli::hfl(&["report", "--model-dir", model, "--out", &out, "--tensorboard", &events])
    };
    for _ in 0..2 {
        assert!(report(&page).status.success());
    }
    let html = std::fs::read_to_string(&page).expect("a page");
    assert!(html.contains("8 of 8") && html.contains("<svg"), "{html}");
    let files: Vec<_> = std::fs::read_dir(&events).expect("events").flatten().collect();
    assert_eq!(files.len(), 1, "one file a job");
    let bytes = std::fs::read(files[0].path()).expect("an event file");
    assert_eq!(bytes.windows(13).filter(|part| part == b"learning_rate").count(), STEPS as usize);
    assert_eq!(report(&dir.path("data/test_batch.bin")).status.code(), Some(1), "not a page");

    let (code, stderr) = Cast::new(&dir, "model").start("ps0", &[("--seed", "2")]).end();
    assert_eq!(code, 1);
    assert!(
        stderr.contains("checkpoint of another job") && stderr.contains("--model-dir"),
        "{stderr}"
    );

    averaged_over_mirror_images(&dir, model);
    let path = dir.path("model/model.ckpt-data");
    let mut bytes = std::fs::read(&path).expect("checkpoint");
    let last = bytes.len() - 1;
    bytes[last - 4_000_000] ^= 1;
    std::fs::write(&path, &bytes).expect("write");
    let changed = crate::cli::hfl(&["eval", "--model-dir", model, "--data", data]);
    bytes.truncate(last);
    std::fs::write(&path, &bytes).expect("write");
    let cut = crate::cli::hfl(&["eval", "--model-dir", model, "--data", data]);
    for output in [changed, cut] {
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("model.ckpt-data"));
    }
}

#[test]
fn a_port_in_use_an_unknown_host_and_a_taken_role_are_clear_ends() {
    let dir = Dir::new("ends");
    let cast = Cast::new(&dir, "model");
    let ps0 = cast.start("ps0", &[("--json", "")]);
    ps0.wait_for("{\"address\"");
    let (code, stderr) = cast.start("ps0", &[]).end();
    assert_eq!(code, 1);
    assert!(
        stderr.contains(&format!("127.0.0.1:{}", cast.port)) && stderr.contains("in use"),
        "{stderr}"
    );

    let lost = [("--ps-hosts", "no.such.host.invalid:1"), ("--wait", "1")];
    let (code, stderr) = cast.start("worker0", &lost).end();
    assert_eq!(code, 1);
    assert!(stderr.contains("no.such.host.invalid:1"), "{stderr}");

    let (code, stderr) = cast.start("worker7", &[("--shard", "0/1")]).end();
    assert_eq!(code, 1);
    assert!(stderr.contains("refused us: the job has no such role"), "{stderr}");

    // A second process does not take the place of one that is alive, nor one with other data.
    let other = dir.path("other");
    let other = other.to_str().expect("UTF-8");
    let mut both =
        vec![cast.start("worker0", &[]), cast.start("worker0", &[("--model-dir", other)])];
    let start = Instant::now();
    // Whichever joined first is the first.
    let second = loop {
        let ended = both.iter_mut().position(|p| p.child.try_wait().expect("wait").is_some());
        if let Some(index) = ended {
            break both.remove(index);
        }
        assert!(start.elapsed() < PATIENCE, "both go on");
        std::thread::sleep(Duration::from_millis(50));
    };
    let (code, stderr) = second.end();
    assert_eq!(code, 1);
    assert!(stderr.contains("another process has our role, and is alive"), "{stderr}");
    let odd = [("--model-dir", other), ("--shard", "1/2")];
    let (code, stderr) = cast.start("worker0", &odd).end();
    assert_eq!(code, 1);
    assert!(stderr.contains("our data is not what it was"), "{stderr}");
    both.push(cast.start("worker1", &[]));
    for worker in both {
        assert_eq!(worker.end().0, 0);
    }
    ps0.wait_for("{\"bytes_received\"");
    drop(ps0);

    // What their data is stays in the roster: without any checkpoint others with its index show the same.
    let roster = std::fs::read(dir.path("model/roster.json")).expect("a roster");
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&roster).expect("JSON");
    let with_data = entries.iter().filter(|entry| entry["data"].is_string());
    assert!(entries[0]["data"].is_null() && with_data.count() == entries.len() - 1);
    for file in ["model.ckpt-data", "model.ckpt-meta"] {
        std::fs::remove_file(dir.path("model").join(file)).expect(file);
    }
    let ps0 = Process::start(&cast.words("ps0", &[]), "info");
    let (code, stderr) = cast.start("worker0", &odd).end();
    assert_eq!(code, 1);
    assert!(stderr.contains("our data is not what it was"), "{stderr}");
    ps0.terminate();
    let stderr = ps0.end().1;
    assert!(stderr.contains("other data than in the roster"), "{stderr}");
}

#[test]
fn a_worker_that_is_100_seconds_late_ends_no_connection() {
    let dir = Dir::new("late");
    let cast = Cast::new(&dir, "model");
    let one = ("--steps", "1");
    let ps0 = Process::start(&cast.words("ps0", &[one]), "info");
    let late = cast.start("worker1", &[("--pause-ms", "100000")]);
    let waiting = Process::start(&cast.words("worker0", &[]), "info");
    let end = |process: Process| {
        let (code, stderr) = process.end();
        assert_eq!(code, 0, "{stderr}");
        stderr
    };
    let steps: Vec<String> = std::iter::from_fn(|| waiting.next_line()).collect();
    assert_eq!(steps.iter().filter(|line| line.starts_with("step: 0,")).count(), 1, "{steps:?}");
    end(late);
    let said = [end(ps0), end(waiting)];
    assert_eq!(said[0].matches("its evidence is accepted").count(), 2, "{}", said[0]);
    // Before ps0 listens a worker may come in vain; once they have spoken there is no second time.
    let mut anew = said[1].lines().filter(|line| line.contains("trying again"));
    assert!(anew.all(|line| line.contains("Connection refused")), "{}", said[1]);
}

#[test]
fn two_servers_do_not_share_a_directory_and_a_finished_job_says_so() {
    let dir = Dir::new("twice");
    let cast = Cast::new(&dir, "model");
    let ps0 = cast.start("ps0", &[("--json", "")]);
    ps0.wait_for("{\"address\"");
    let elsewhere = format!("localhost:{}", free_port());
    let (code, stderr) = cast.start("ps0", &[("--ps-hosts", &elsewhere)]).end();
    assert_eq!(code, 1);
    assert!(stderr.contains("another ps0 keeps its model there"), "{stderr}");

    for worker in ["worker0", "worker1"].map(|role| cast.start(role, &[])) {
        assert_eq!(worker.end().0, 0);
    }
    ps0.wait_for("{\"bytes_received\"");
    assert_eq!(ps0.end().0, 0);
    let again = cast.start("ps0", &[]);
    let late = ["worker0", "worker1"].map(|role| cast.start(role, &[]));
    for worker in late {
        assert_eq!(worker.end().0, 0);
    }
    again.wait_for("parameters: sha256:");
    let (code, stderr) = again.end();
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("the job is done already, all 8 steps"), "{stderr}");
}

#[test]
fn every_signal_saves_and_the_same_command_goes_on() {
    let dir = Dir::new("signals");
    let calm = undisturbed(&dir);
    let cast = Cast::new(&dir, "signalled");
    let slow = [("--pause-ms", "150")];
    let worker0 = Process::start(&cast.words("worker0", &slow), "info");
    let worker1 = cast.start("worker1", &slow);
    for (step, signal) in [(0, Signal::INT), (1, Signal::HUP), (2, Signal::TERM)] {
        let ps0 = cast.start("ps0", &[("--checkpoint-every", "100")]);
        ps0.wait_for(&format!("step: {step},"));
        kill_process(Pid::from_child(&ps0.child), signal).expect("a signal");
        let (code, stderr) = ps0.end();
        assert_eq!(code, 1);
        let saved = format!("the checkpoint is of step {}", step + 1);
        assert!(stderr.contains(&saved), "{signal:?}: {stderr}");
    }
    let ps0 = cast.start("ps0", &[]);
    assert!(ps0.wait_for("step: ").starts_with("step: 3,"));
    assert_eq!(cast.finish(&ps0, vec![worker1]), calm);
    let (code, said) = worker0.end();
    assert_eq!(code, 0);
    assert_eq!(said.matches("it was stopped, and goes on").count(), 3, "workers know why: {said}");
}

#[test]
fn what_is_not_finite_ends_a_job_by_name_and_a_lower_rate_goes_on() {
    let dir = Dir::new("diverged");
    let cast = Cast::new(&dir, "model");
    let constant = ("--lr-schedule", "constant");
    let run = |rate| {
        let ps0 = cast.start("ps0", &[constant, ("--lr", rate), ("--checkpoint-every", "1")]);
        let workers = ["worker0", "worker1"].map(|role| cast.start(role, &[]));
        (ps0, workers)
    };
    let (ps0, workers) = run("1e38");
    let (code, stderr) = ps0.end();
    assert_eq!(code, 1);
    assert!(stderr.contains("not finite") && stderr.contains("a lower --lr"), "{stderr}");
    drop(workers);
    let data = dir.path("model/model.ckpt-data");
    assert!(!data.exists(), "nothing that is not finite is saved");

    // Two good steps, then a rate that is too high, then one that is not.
    let stop = [constant, ("--checkpoint-every", "1")];
    let ps0 = cast.start("ps0", &stop);
    let workers = ["worker0", "worker1"].map(|role| cast.start(role, &[("--pause-ms", "100")]));
    ps0.wait_for("step: 1,");
    ps0.terminate();
    assert_eq!(ps0.end().0, 1);
    let ps0 = cast.start("ps0", &[constant, ("--lr", "1e38"), ("--checkpoint-every", "1")]);
    let (code, stderr) = ps0.end();
    assert_eq!(code, 1);
    assert!(stderr.contains("the checkpoint of step 2 is kept"), "{stderr}");
    drop(workers);
    let (ps0, workers) = run("0.001");
    assert!(ps0.wait_for("step: ").starts_with("step: 2,"));
    cast.finish(&ps0, workers.into());
}

#[test]
fn a_demo_ends_with_its_children_and_touches_nothing_of_others() {
    let dir = Dir::new("demo");
    let other = dir.path("other");
    std::fs::create_dir_all(&other).expect("a folder");
    let (key, volume) = (other.join("model.key"), other.join("model.luks"));
    std::fs::write(&key, "mine").expect("write");
    std::fs::write(&volume, "mine too").expect("write");
    let output = crate::cli::hfl(&["demo", "--dir", other.to_str().expect("UTF-8")]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("not empty, and not a demo's"), "{stderr}");
    assert_eq!(std::fs::read(&key).expect("still there"), b"mine");
    assert_eq!(std::fs::read(&volume).expect("still there"), b"mine too");
    assert_eq!(std::fs::read_dir(&other).expect("a folder").count(), 2);

    // Killed outright: nothing of it can clean up, and still no child stays.
    let fresh = dir.path("fresh");
    let demo = Process::start(&["demo", "--dir", fresh.to_str().expect("UTF-8")], "warn");
    demo.wait_for("ps0 and 2 workers");
    let children = || {
        let found = std::fs::read_dir("/proc").expect("processes").flatten().filter(|entry| {
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.contains("--with-parent") && words.contains(&format!("\0{}\0", demo.id()))
        });
        found.count()
    };
    let start = Instant::now();
    while children() < 3 {
        assert!(start.elapsed() < PATIENCE, "the children start");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill_process(Pid::from_child(&demo.child), Signal::KILL).expect("a signal");
    while children() > 0 {
        assert!(start.elapsed() < PATIENCE, "orphans go on training");
        std::thread::sleep(Duration::from_millis(20));
    }
}
