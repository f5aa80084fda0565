//! The model in an encrypted volume: kept through kill -9, vouched for by its manifest, opened by flags.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use hfl::training::store::{Access, Place, Progress, Store};
use hfl::training::volume::create_volume;
use hfl::trust::passphrase::KeySource;
use luks::ext4::{FileSystem, NewFile};
use luks::{Hash, KdfCost, Options, Passphrase, Source, Volume};

use crate::cli::hfl;
use crate::processes::{Cast, Dir, STEPS, undisturbed};

const FAST: KdfCost = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 };
const KEY: &[u8] = b"a key\n";

fn passphrase() -> Passphrase {
    Passphrase::from_bytes(KEY)
}

/// A volume and its key file.
fn volume(dir: &Dir, mib: u64) -> (PathBuf, PathBuf) {
    let (path, key) = (dir.path("volume"), dir.path("key"));
    fs::write(&key, KEY).expect("key");
    let mut options = Options::new(mib << 20);
    options.cost = FAST;
    create_volume(&path, None, &options, &[passphrase()], false, true).expect("create");
    (path, key)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[track_caller]
fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn kill_9_leaves_a_volume_with_the_last_complete_checkpoint() {
    let dir = Dir::new("sealed");
    let calm = undisturbed(&dir);
    let (volume, key) = volume(&dir, 520);
    let cast = Cast::new(&dir, "unused");
    let options =
        [("--volume", text(&volume)), ("--key-file", text(&key)), ("--checkpoint-every", "1")];
    let workers = ["worker0", "worker1"].map(|role| cast.start(role, &[("--pause-ms", "150")]));
    let out = dir.path("out");
    let mut last_step = 0;
    for death in 0..10_u64 {
        let ps0 = cast.start("ps0", &options);
        // Somewhere between two steps, while a checkpoint is written, or while one is read. The line of
        // a second step comes after a whole checkpoint, however slow the machine is.
        match death {
            0 => {}
            // Early, while there are steps left.
            1 | 2 => {
                ps0.wait_for("step: ");
                ps0.wait_for("step: ");
            }
            _ => {
                let _ = ps0.next_line();
            }
        }
        std::thread::sleep(Duration::from_millis(death * 7919 % 450));
        ps0.kill();
        let (out_text, raw) = (text(&out), dir.path("raw"));
        let args = ["luks", "export", text(&volume), "--key-file", text(&key)];
        succeeds(&hfl(&[&args[..], &["--files", out_text]].concat()));
        succeeds(&hfl(&[&args[..], &["--raw", text(&raw)]].concat()));
        let check = Command::new("/sbin/e2fsck").arg("-fn").arg(&raw).output().expect("e2fsck");
        succeeds(&check);
        let store = Store::volume(&volume, &passphrase(), Access::Read).expect("opens");
        let found = hfl::training::checkpoint::load(&store, "model.ckpt-data").expect("whole");
        let step = found.map_or(0, |(_, checkpoint)| checkpoint.state.step);
        assert!(step >= last_step, "step {step} after {last_step}");
        last_step = step;
        fs::remove_dir_all(&out).expect("remove");
    }
    assert!(last_step > 0, "no death left a checkpoint");
    let ps0 = cast.start("ps0", &options);
    assert_eq!(cast.finish(&ps0, workers.into()), calm);
    let (code, stderr) = ps0.end();
    assert_eq!(code, 0, "{stderr}");
    let data = dir.path("data");
    let flags = ["eval", "--volume", text(&volume), "--key-file", text(&key), "--json"];
    let output = hfl(&[&flags[..], &["--data", text(&data)]].concat());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["step"].as_u64(), Some(STEPS));
    // A volume that was set back as a whole is authentic; who knows its step notices.
    let more = ["--data", text(&data), "--min-step", "9"];
    let refused = hfl(&[&flags[..], &more].concat());
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("set back"));
}

#[test]
fn the_volume_of_a_running_job_is_evaluated() {
    let dir = Dir::new("running");
    let calm = undisturbed(&dir);
    let (volume, key) = volume(&dir, 520);
    let cast = Cast::new(&dir, "unused");
    let options =
        [("--volume", text(&volume)), ("--key-file", text(&key)), ("--checkpoint-every", "1")];
    let data = dir.path("data");
    let flags = ["eval", "--volume", text(&volume), "--key-file", text(&key), "--json"];
    let ps0 = cast.start("ps0", &options);
    let workers = ["worker0", "worker1"].map(|role| cast.start(role, &[("--pause-ms", "500")]));
    ps0.wait_for("step: 1,");
    let output = hfl(&[&flags[..], &["--data", text(&data)]].concat());
    succeeds(&output);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!((1..STEPS).contains(&report["step"].as_u64().expect("a step")), "{report}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("in use, its last checkpoint is read"), "{said}");
    assert_eq!(cast.finish(&ps0, workers.into()), calm);
    assert_eq!(ps0.end().0, 0);
}

fn progress(step: u64) -> Progress {
    Progress { job: [7; 32], step }
}

fn read(store: &Store, name: &str) -> std::io::Result<Option<Vec<u8>>> {
    store.read(name)
}

fn put(files: &mut FileSystem<Volume>, path: &str, bytes: &[u8]) {
    let mut file = NewFile::default();
    files.append(&mut file, bytes).expect("room");
    files.commit(vec![(path, file)], 1).expect("commit");
}

fn get(files: &FileSystem<Volume>, path: &str) -> Vec<u8> {
    let file = files.file(path).expect("a file");
    let mut bytes = vec![0; file.len() as usize];
    files.read_at(&file, &mut bytes, 0).expect("read");
    bytes
}

#[test]
fn swapped_and_older_files_are_noticed() {
    let dir = Dir::new("manifest");
    let (path, _) = volume(&dir, 32);
    let open = || Store::volume(&path, &passphrase(), Access::Write).expect("open");
    let inside = || {
        let volume = Source::new(&path).open(&passphrase(), true).expect("open");
        FileSystem::open_writable(volume).expect("ext4")
    };
    let mut store = open();
    store.save("a", progress(1), &|out| out.write_all(b"one")).expect("save");
    store.save("b", progress(1), &|out| out.write_all(b"of b")).expect("save");
    drop(store);
    let older = {
        let files = inside();
        [get(&files, "model/a"), get(&files, "model/manifest.json")]
    };
    let mut store = open();
    assert_eq!(read(&store, "a").expect("authentic"), Some(b"one".to_vec()));
    store.save("a", progress(2), &|out| out.write_all(b"two, longer")).expect("save");
    let manifest = store.manifest().expect("a manifest");
    assert_eq!((manifest.step, manifest.files.len()), (2, 2));
    assert!(manifest.previous.is_some());
    assert_eq!(read(&store, "c").expect("nothing there"), None);
    let failed = store.save("a", progress(3), &|_| Err(std::io::Error::other("no")));
    assert!(failed.is_err());
    assert_eq!(read(&store, "a").expect("the old one"), Some(b"two, longer".to_vec()));
    store.close().expect("close");
    let newer = get(&inside(), "model/manifest.json");

    // An older file under the newer manifest, another's file, a file that nobody vouches for.
    for bytes in [&older[0][..], b"of b"] {
        put(&mut inside(), "model/a", bytes);
        assert!(read(&open(), "a").is_err());
    }
    put(&mut inside(), "model/c", b"new");
    assert!(read(&open(), "c").is_err());
    // An older manifest vouches for older files only; both together are an older state, which shows
    // in its step.
    put(&mut inside(), "model/manifest.json", &older[1]);
    assert!(read(&open(), "a").is_err());
    assert_eq!(open().manifest().expect("a manifest").step, 1);
    // A changed manifest is not authentic.
    let changed =
        String::from_utf8(newer).expect("JSON").replace("\\\"step\\\":2", "\\\"step\\\":9");
    put(&mut inside(), "model/manifest.json", changed.as_bytes());
    let error =
        Store::volume(&path, &passphrase(), Access::Read).err().expect("refused").to_string();
    assert!(error.contains("fails authentication"), "{error}");
}

#[test]
fn passphrases_come_from_files_descriptors_and_pipes_and_failures_say_what_to_try() {
    let dir = Dir::new("flags");
    let (path, key) = volume(&dir, 32);
    let export = ["luks", "export", text(&path), "--raw", "/dev/null"];
    succeeds(&hfl(&[&export[..], &["--key-file", text(&key)]].concat()));

    // Descriptor 0 stands for any: the key file opened by the caller.
    let program = || Command::new(env!("CARGO_BIN_EXE_hfl"));
    let opened = || fs::File::open(&key).expect("key");
    let run = |more: &[&str], stdin: Stdio| {
        program().args(export).args(more).stdin(stdin).output().expect("run")
    };
    succeeds(&run(&["--key-fd", "0"], opened().into()));
    succeeds(&run(&["--key-file", "-"], opened().into()));
    // As a line of stdin, the newline does not count, so this is another passphrase.
    let refused = run(&[], opened().into());
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && stderr.contains("newline"), "{stderr}");

    let failures: [(&[&str], &str); 4] = [
        (&["luks", "dump", "/no/such/volume"], "hfl luks create"),
        (&["luks", "create", text(&path), "--key-file", text(&key)], "--force"),
        (&["luks", "dump", text(&key)], "no LUKS2 volume"),
        (&["luks", "open", text(&path), "../x", "--key-file", text(&key)], "mapping name"),
    ];
    for (args, expected) in failures {
        let output = hfl(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
    }
    let dumped = hfl(&["luks", "dump", text(&path), "--json"]);
    let header: serde_json::Value = serde_json::from_slice(&dumped.stdout).expect("JSON");
    assert_eq!(header["header_mac"], true);
    let id = header["header_id"].as_str().expect("an id").to_owned();
    let pinned = [&export[..], &["--key-file", text(&key), "--expect"]].concat();
    succeeds(&hfl(&[&pinned[..], &[&id]].concat()));
    let other = "0".repeat(64);
    assert_eq!(hfl(&[&pinned[..], &[&other]].concat()).status.code(), Some(1));

    // A role does not take a volume that nothing vouches for, nor a wrong key.
    let place = |file: &Path| Place {
        model_dir: dir.path("model"),
        volume: Some(path.clone()),
        create: None,
        key: KeySource { file: Some(file.into()), descriptor: None },
        min_step: 0,
    };
    let open = |place: &Place| place.open(|| place.key.read());
    open(&place(&key)).expect("opens").close().expect("close");
    fs::write(dir.path("wrong"), b"wrong").expect("write");
    assert!(open(&place(&dir.path("wrong"))).is_err());
}
