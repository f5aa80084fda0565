//! Passphrases of a volume that is there: from files, pipes and the secret service; backups of its header.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::cli::hfl;
use crate::processes::Dir;
use crate::secrets::Serving;

const FAST: [&str; 4] = ["--kdf", "pbkdf2", "--kdf-time", "1000"];

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Runs a command that must succeed; what it prints.
#[track_caller]
fn done(args: &[&str]) -> String {
    let output = hfl(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command that must fail with this code; stderr has the part.
#[track_caller]
fn refused(output: &Output, code: i32, part: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(part), "'{part}' not in: {stderr}");
}

/// A volume that the key `first` opens, and that key and two others.
fn volume(dir: &Dir) -> (PathBuf, [PathBuf; 3]) {
    let keys = ["first", "second", "third"].map(|name| {
        fs::write(dir.path(name), name).expect("key");
        dir.path(name)
    });
    let path = dir.path("volume");
    let args = ["luks", "create", text(&path), "--size", "32M", "--key-file", text(&keys[0])];
    done(&[&args[..], &FAST].concat());
    (path, keys)
}

fn opens(path: &Path, key: &Path) -> bool {
    let args = ["luks", "export", text(path), "--raw", "/dev/null", "--key-file", text(key)];
    hfl(&args).status.success()
}

#[test]
fn passphrases_are_added_changed_and_removed_and_headers_kept() {
    let dir = Dir::new("keys");
    let (path, [first, second, third]) = volume(&dir);
    let key = |words: &[&str]| {
        [&["luks", "key"], words].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |words: &[&str]| {
        let words = key(words);
        hfl(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (volume, [one, two, three]) = (text(&path), [&first, &second, &third].map(|key| text(key)));
    let added =
        run(&[&["add", volume, "--key-file", one, "--new-key-file", two], &FAST[..]].concat());
    assert_eq!(String::from_utf8_lossy(&added.stdout), format!("keyslot 1 added to {volume}\n"));
    let backup = dir.path("backup");
    done(&["luks", "header", "backup", volume, text(&backup), "--key-file", one]);

    // The new one on a pipe, as a line of it.
    let words = key(&[&["change", volume, "--key-file", one], &FAST[..]].concat());
    let child = Command::new(env!("CARGO_BIN_EXE_hfl")).args(words).stdin(Stdio::piped()).spawn();
    let mut child = child.expect("run");
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), b"third\n").expect("write");
    assert!(child.wait().expect("ends").success());
    assert_eq!([&first, &second, &third].map(|key| opens(&path, key)), [false, true, true]);

    refused(&run(&["remove", volume, "--slot", "1", "--key-file", two]), 1, "no keyslot opens");
    let removed = run(&["remove", volume, "--slot", "1", "--key-file", three]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    refused(&run(&["remove", volume, "--slot", "0", "--key-file", three]), 1, "the last keyslot");
    refused(&run(&["remove", volume, "--slot", "5", "--key-file", three]), 1, "keyslot 5");
    assert_eq!([&first, &second, &third].map(|key| opens(&path, key)), [false, false, true]);
    let listed = done(&["luks", "dump", volume]);
    assert!(listed.contains("keyslot 0") && !listed.contains("keyslot 1"), "{listed}");

    let restore = ["luks", "header", "restore", volume, text(&backup), "--key-file"];
    refused(&hfl(&[&restore[..], &[three]].concat()), 1, "no keyslot opens");
    let told = done(&[&restore[..], &[two]].concat());
    assert!(told.contains("keyslots  2"), "{told}");
    assert_eq!([&first, &second, &third].map(|key| opens(&path, key)), [true, true, false]);

    // What makes no sense is told before anything is asked for.
    let usage: [(&[&str], &str); 4] = [
        (&["add", volume], "two passphrases, and one line on stdin"),
        (&["add", volume, "--app-id", "x", "--new-key-file", one], "--secret-service HOST:PORT"),
        (&["change", volume, "--secret-service", "localhost:1"], "of which passphrase"),
        (
            &["add", volume, "--key-file", one, "--app-id", "x", "--secret-service", "y:1"],
            "from a file and",
        ),
    ];
    for (words, part) in usage {
        refused(&run(words), 2, part);
    }
}

#[test]
fn what_the_secret_service_releases_changes_without_a_new_volume() {
    let dir = Dir::new("rotation");
    let (path, [first, second, third]) = volume(&dir);
    let service = Serving::start(&dir, r#"{"now":"first","next":"second"}"#);
    let asking = ["--secret-service", &service.address, "--attestation", "sim"];
    let policy = ["--policy", text(&service.policy)];
    let key = |command: &str, words: &[&str], more: &[&str]| {
        hfl(&[&["luks", "key", command, text(&path)], words, &asking[..], &policy[..], more]
            .concat())
    };
    let both = ["--app-id", "now", "--new-app-id", "next"];
    let changed = key("change", &both, &FAST);
    assert!(changed.status.success(), "{}", String::from_utf8_lossy(&changed.stderr));
    assert_eq!([&first, &second, &third].map(|key| opens(&path, key)), [false, true, false]);
    // One of the two from the service, the other from a file: in both directions.
    let added = key("add", &["--app-id", "next", "--new-key-file", text(&third)], &FAST);
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let back = key("change", &["--key-file", text(&second), "--new-app-id", "now"], &FAST);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    let removed = key("remove", &["--slot", "1", "--app-id", "now"], &[]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    assert_eq!([&first, &second, &third].map(|key| opens(&path, key)), [true, false, false]);
}
