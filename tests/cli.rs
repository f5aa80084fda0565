//! Arguments to stdout, stderr and exit code.

use std::process::{Command, Output, Stdio};

pub(crate) fn hfl(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hfl"));
    command.args(args).env_remove("RUST_LOG").output().expect("run hfl")
}

/// Runs and compares the exit code; stderr must contain every part.
#[track_caller]
fn check(args: &[&str], code: i32, parts: &[&str]) {
    let output = hfl(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: '{part}' not in: {stderr}");
    }
}

#[test]
fn usage_errors_exit_with_2_and_name_the_argument() {
    check(&["--frobnicate"], 2, &["--frobnicate", "try: hfl --help"]);
    check(&["--role", "chief0"], 2, &["chief0", "expected ps0"]);
    check(&["--role", "ps0", "--shard", "2/2"], 2, &["2/2"]);
    check(&["--role", "ps0", "--ps-hosts", "nowhere"], 2, &["nowhere", "host:port"]);
    check(&["--role", "ps0", "--isa", "neon"], 2, &["neon", "portable"]);
    check(&["bench", "--stem", "vgg"], 2, &["vgg", "imagenet or cifar"]);
    check(&[], 2, &["nothing to do", "try:", "hfl demo"]);
    for (flags, part) in [
        (&["--batch-size", "0"][..], "--batch-size is 0"),
        (&["--batch-size", "1"], "one pixel"),
        (&["--epochs", "0"], "--epochs is 0"),
        (&["--threads", "999"], "--threads is 999, expected 1 to 256"),
        (&["--lr", "NaN"], "--lr is NaN"),
        (&["--momentum", "1.5"], "--momentum is 1.5, expected a number from 0 to 1"),
        (&["--steps", "0"], "count from 1"),
        (&["--quorum", "1"], "--quorum needs --deadline"),
        (&["--deadline", "5"], "--deadline needs --quorum"),
        (
            &["--quorum", "0", "--deadline", "5"],
            "--quorum is 0, expected 1 to the number of workers, 2",
        ),
        (&["--quorum", "3", "--deadline", "5"], "--quorum is 3"),
        (&["--quorum", "1", "--deadline", "0"], "--deadline is 0, expected 1 to"),
        (&["--local-steps", "0"], "--local-steps is 0"),
        (&["--outer-rate", "0.7"], "--local-steps 2 or more"),
        (&["--wire", "fp8"], "fp8"),
    ] {
        check(&[&["--role", "ps0", "--attestation", "sim"], flags].concat(), 2, &[part]);
    }
    check(&["demo", "--workers", "0"], 2, &["--workers"]);
    for (args, part) in [
        (&["bench", "--batch", "0"][..], "count from 1"),
        (&["bench", "--inference", "--scaling"], "--scaling"),
        (&["doctor", "--role", "node"], "expected ps0"),
        (&["verify"], "nothing to judge"),
        (&["secret", "serve", "--attestation", "sim"], "where the secrets are"),
        (&["luks", "export", "model.luks", "--key-fd", "0"], "--raw FILE or --files DIR"),
        (&["--role", "ps1", "--attestation", "sim"], "one parameter server"),
        (&["--role", "node", "--attestation", "sim"], "no role of a job"),
    ] {
        check(args, 2, &[part]);
    }
    check(&["bench", "--stem=vgg"], 2, &["vgg", "imagenet or cifar"]);
}

#[test]
fn failures_exit_with_1_and_say_what_to_try() {
    fn role<'a>(args: &[&'a str]) -> Vec<&'a str> {
        [args, &["--attestation", "sim"]].concat()
    }
    check(&["--role", "ps0"], 1, &["no source of TDX evidence", "--attestation sim"]);
    check(&role(&["--role", "worker0", "--data", "/nonexistent"]), 1, &["/nonexistent", "--data"]);
    check(&["replay", "--model-dir", "/nonexistent"], 1, &["rounds.json: no such file"]);
    let no_digest = "g".repeat(64);
    for (job, part) in [
        ("/nonexistent.json", "/nonexistent.json"),
        ("/dev/null", "--job /dev/null"),
        (&*no_digest, "ggg"),
    ] {
        check(&role(&["--role", "worker0", "--data", "/nonexistent", "--job", job]), 1, &[part]);
    }
    check(&["eval", "--model-dir", "/nonexistent"], 1, &["model.ckpt-data", "--model-dir"]);
}

#[test]
fn help_and_version_go_to_stdout_with_0() {
    for (args, part) in [
        (&["--help"][..], "hfl demo"),
        (&["demo", "--help"], "--workers"),
        (&["bench", "--help"], "--steps"),
        (&["eval", "--help"], "--split"),
        (&["--version"], concat!("hfl ", env!("CARGO_PKG_VERSION"))),
    ] {
        let output = hfl(args);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout.contains(part), "{args:?}: {stdout}");
    }
}

#[test]
fn bench_reports_json() {
    let output = hfl(&["bench", "--batch", "2", "--steps", "2", "--threads", "1", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for key in ["median_s", "min_s", "images_per_s", "gflops"] {
        assert!(report[key].as_f64().expect(key) > 0.0);
    }
    assert_eq!(report["batch"], 2);
}

/// What a command shows on a terminal of its own, stdout and stderr together.
fn on_a_terminal(args: &[&str], environment: &[(&str, &str)]) -> String {
    let words = [&[env!("CARGO_BIN_EXE_hfl")], args].concat();
    let mut command = Command::new("script");
    command.args(["-qec", &words.join(" "), "/dev/null"]).env("TERM", "xterm");
    command.envs(environment.iter().copied()).env_remove("RUST_LOG").stdin(Stdio::null());
    let output = command.output().expect("script, of bsdutils");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether something is shown in colour or bold: ESC [ numbers m.
fn is_coloured(shown: &str) -> bool {
    let plain = |c: char| c.is_ascii_digit() || c == ';';
    shown.split("\x1b[").skip(1).any(|rest| rest.trim_start_matches(plain).starts_with('m'))
}

#[test]
fn long_work_is_drawn_on_a_terminal_and_nowhere_else() {
    let bench = ["bench", "--batch", "32", "--steps", "12", "--threads", "1"];
    let shown = on_a_terminal(&bench, &[]);
    for part in ["\r\x1b[K[", "#", "] timed ", " of 15 steps, ", " steps/s, ", " left"] {
        assert!(shown.contains(part), "{part:?} not in {shown:?}");
    }
    // The bar makes room for the result.
    let (bars, result) = shown.rsplit_once("\r\x1b[K").expect("a bar");
    assert!(!bars.contains("images/s") && result.contains("images/s"), "{shown:?}");
    let piped = hfl(&["bench", "--batch", "32", "--steps", "4", "--threads", "1"]);
    for bytes in [piped.stdout, piped.stderr] {
        assert!(!bytes.contains(&0x1b) && !bytes.contains(&b'\r'));
    }
}

#[test]
fn nothing_is_coloured_with_no_color_or_without() {
    let failing = ["--role", "worker0", "--attestation", "sim", "--data", "/nonexistent"];
    for environment in [&[("NO_COLOR", "1")][..], &[("NO_COLOR", "")], &[]] {
        let shown = on_a_terminal(&failing, environment);
        assert!(shown.contains("SIMULATED") && shown.contains("/nonexistent"), "{shown:?}");
        assert!(!is_coloured(&shown), "{shown:?}");
    }
    assert!(is_coloured("\x1b[1;31mred\x1b[0m") && !is_coloured("\r\x1b[Kplain"));
}
