//! Volumes on block devices as pods have them: a loop device of an unprivileged user, filled, killed and grown.
//!
//! Ignored by default because attaching a loop device needs root: `.ci/device.sh` runs it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::processes::{Cast, Dir, Process, undisturbed};

/// Who owns the device, and may do nothing else.
const USER: u32 = 65_534;
const MIB: u64 = 1 << 20;

/// A loop device, and the file below it.
struct Device {
    path: String,
    file: PathBuf,
}

#[track_caller]
fn run(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output().expect(tool);
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

impl Device {
    fn new(dir: &Dir, mib: u64) -> Self {
        let file = dir.path("disk");
        File::create(&file).and_then(|file| file.set_len(mib * MIB)).expect("a file");
        let path = run("losetup", &["-f", "--show", file.to_str().expect("UTF-8")]);
        chown(&path, Some(USER), Some(USER)).expect("root");
        Self { path, file }
    }

    /// What the storage of a claim does when its size changes.
    fn grow(&self, mib: u64) {
        let file = File::options().write(true).open(&self.file);
        file.and_then(|file| file.set_len(mib * MIB)).expect("grown");
        run("losetup", &["-c", &self.path]);
    }

    fn write(&self, bytes: &[u8], at: u64) {
        let device = File::options().write(true).open(&self.path).expect("a device");
        device.write_all_at(bytes, at).and_then(|()| device.sync_all()).expect("write");
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // As it was for the next test, whatever this one came to.
        let _ = Command::new("losetup").args(["-d", &self.path]).status();
        let _ = chown(&self.path, Some(0), Some(0));
    }
}

/// A directory that the user has, with the program and a key in it.
fn home(name: &str) -> (Dir, String, String) {
    let dir = Dir::new(name);
    let [program, key] = ["hfl", "key"].map(|name| dir.path(name));
    fs::copy(env!("CARGO_BIN_EXE_hfl"), &program).expect("program");
    fs::write(&key, b"a key").expect("key");
    fs::set_permissions(dir.path(""), fs::Permissions::from_mode(0o755)).expect("mode");
    for path in ["", "key", "data"] {
        chown(dir.path(path), Some(USER), Some(USER)).expect("root");
    }
    let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
    (dir, text(program), text(key))
}

/// The words that run a program as that user, without capabilities.
fn as_user(program: &str, args: &[impl AsRef<str>]) -> Vec<String> {
    let user = USER.to_string();
    let drop = ["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs"];
    let words = drop.into_iter().chain(["--bounding-set", "-all", "--", program]);
    words.chain(args.iter().map(AsRef::as_ref)).map(str::to_owned).collect()
}

fn hfl(program: &str, args: &[&str]) -> Output {
    Command::new("setpriv").args(as_user(program, args)).output().expect("setpriv")
}

#[track_caller]
fn refused(output: &Output, part: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains(part), "{stderr}");
}

#[test]
#[ignore = "needs root for a loop device: .ci/device.sh"]
fn a_job_goes_on_on_its_device_after_a_kill_and_takes_in_what_it_gained() {
    let (dir, program, key) = home("device");
    let calm = undisturbed(&dir);
    let device = Device::new(&dir, 430);
    let cast = Cast::new(&dir, "unused");
    let options = [
        ("--volume", device.path.as_str()),
        ("--create-volume", "1G"),
        ("--key-file", &key),
        ("--checkpoint-every", "1"),
    ];
    let start = || {
        let words = as_user(&program, &cast.words("ps0", &options));
        Process::start_program("setpriv", &words, "info")
    };

    // Somebody's file system stays as it is, at the device's start and at its end.
    for (at, bytes) in [(1080, &b"\x53\xef"[..]), (430 * MIB - 4096, b"a copy of a table")] {
        device.write(bytes, at);
        let (code, stderr) = start().end();
        assert!(code == 1 && stderr.contains("no LUKS2 volume"), "{stderr}");
        let create = ["luks", "create", &device.path, "--key-file", &key];
        refused(&hfl(&program, &create), "--force");
        device.write(&vec![0; bytes.len()], at);
    }
    // What a creation left that was killed is nobody's.
    device.write(b"hfl: a volume that is not finished\n", 0);
    device.write(&[7; 4096], 20 * MIB);

    let workers = ["worker0", "worker1"].map(|role| cast.start(role, &[("--pause-ms", "300")]));
    let ps0 = start();
    ps0.wait_for("step: 1,");
    ps0.wait_for("step: 2,");
    ps0.kill();
    device.grow(700);
    let ps0 = start();
    assert_eq!(cast.finish(&ps0, workers.into()), calm);
    let (code, stderr) = ps0.end();
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("resuming after step"), "{stderr}");
    assert!(stderr.contains("MiB more, as the device has"), "{stderr}");

    let export = ["luks", "export", &device.path, "--key-file", &key, "--raw", "-"];
    let plain = hfl(&program, &export);
    assert!(plain.stdout.len() as u64 > 680 * MIB, "{}", String::from_utf8_lossy(&plain.stderr));
    fs::write(dir.path("plain"), &plain.stdout).expect("write");
    run("/sbin/e2fsck", &["-fn", dir.path("plain").to_str().expect("UTF-8")]);
    run("/sbin/cryptsetup", &["open", "--test-passphrase", "--key-file", &key, &device.path]);
}

#[test]
#[ignore = "needs root for a loop device: .ci/device.sh"]
fn creation_fills_a_device_and_one_that_is_killed_begins_anew() {
    let (dir, program, key) = home("filled");
    let device = Device::new(&dir, 64);
    let create = ["luks", "create", &device.path, "--key-file", &key];
    let sized = hfl(&program, &[&create[..], &["--size", "32M"]].concat());
    assert_eq!(sized.status.code(), Some(2), "{}", String::from_utf8_lossy(&sized.stderr));
    let resize = ["luks", "resize", &device.path, "--key-file", &key];
    for (integrity, inside) in [(true, 40), (false, 44)] {
        // Killed at several moments, the last one after its end.
        for ms in [5, 60, 150, 300] {
            let words = as_user(&program, &[&create[..], &["--force", "--integrity"]].concat());
            let mut child = Command::new("setpriv").args(words).spawn().expect("setpriv");
            std::thread::sleep(std::time::Duration::from_millis(ms));
            child.kill().and_then(|()| child.wait()).expect("kill");
            let dumped = hfl(&program, &["luks", "dump", &device.path]);
            let blank = luks::is_blank(device.path.as_ref()).expect("read");
            assert!(dumped.status.success() || blank, "neither a volume nor nobody's");
            // What has a header is whole.
            if dumped.status.success() {
                let opened = hfl(&program, &resize);
                assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
            }
        }
        let more: &[&str] = if integrity { &["--force", "--integrity"] } else { &["--force"] };
        let made = hfl(&program, &[&create[..], more].concat());
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let told = hfl(&program, &resize);
        let told = String::from_utf8(told.stdout).expect("text");
        let mib = told.split("ext4 of ").nth(1).and_then(|rest| rest.split(' ').next());
        let mib: u64 = mib.and_then(|mib| mib.parse().ok()).expect(&told);
        assert!(mib >= inside, "{told}");
        refused(&hfl(&program, &create), "--force");
    }
}

#[test]
#[ignore = "needs root for a loop device: .ci/device.sh"]
fn workers_share_a_data_volume_on_a_read_only_medium() {
    let (dir, program, key) = home("shared-data");
    let calm = undisturbed(&dir);
    let (data, volume) = (dir.path("data"), dir.path("disk"));
    let [data, volume] = [&data, &volume].map(|path| path.to_str().expect("UTF-8"));
    let create = ["luks", "create", volume, "--size", "40M", "--key-file", &key];
    let made = hfl(&program, &[&create[..], &["--files", data, "--integrity"]].concat());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let before = fs::read(volume).expect("read");
    let path = run("losetup", &["-r", "-f", "--show", volume]);
    chown(&path, Some(USER), Some(USER)).expect("root");
    let device = Device { path, file: volume.into() };
    let resize = ["luks", "resize", &device.path, "--key-file", &key];
    assert_eq!(hfl(&program, &resize).status.code(), Some(1), "a medium that is written");

    let cast = Cast::new(&dir, "model");
    let own = dir.path("worker");
    let options = [
        ("--data-volume", device.path.as_str()),
        ("--key-file", &key),
        ("--data", "/no/such/directory"),
        ("--model-dir", own.to_str().expect("UTF-8")),
    ];
    let ps0 = cast.start("ps0", &[]);
    let start = |role| {
        let words = as_user(&program, &cast.words(role, &options));
        Process::start_program("setpriv", &words, "warn")
    };
    assert_eq!(cast.finish(&ps0, vec![start("worker0"), start("worker1")]), calm);
    assert_eq!(ps0.end().0, 0);
    assert!(fs::read(volume).expect("read") == before, "written to");
}
