//! Volumes under a real kernel: a guest of qemu with nothing but hfl and busybox, then cryptsetup; and disks of guests.
//!
//! Ignored by default because it needs a kernel image: `.ci/guest.sh` fetches one and runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Kernel modules in the order in which they load.
const MODULES: [&str; 17] = [
    "loop",
    "dm-mod",
    "dm-crypt",
    "xor",
    "dm-bufio",
    "async_tx",
    "async_xor",
    "dm-integrity",
    "ecb",
    "xts",
    "cryptd",
    "crypto_simd",
    "aesni-intel",
    "af_alg",
    "algif_skcipher",
    "authenc",
    "algif_hash",
];
/// Programs of the distribution that volumes are crossed with.
const FOREIGN: [&str; 4] = ["cryptsetup", "mke2fs", "e2fsck", "resize2fs"];
/// What opens a guest's own disk, as kata does.
const VERITY_MODULES: [&str; 2] = ["reed_solomon", "dm-verity"];
const VERITY_PROGRAMS: [&str; 2] = ["veritysetup", "dmsetup"];
/// Checks that the guest makes; fewer means that it died.
const CHECKS_MIN: usize = 150;
const MINUTES_MAX: u32 = 60;

/// A file tree in the format of an initramfs (kernel `buffer-format.rst`, newc).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let (len, name_len) = (content.len() as u32, name.len() as u32 + 1);
        let fields = [self.entries, mode, 0, 0, 1, 0, len, 0, 0, device.0, device.1, name_len, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn directory(&mut self, path: &str) {
        self.add(path, 0o040_755, (0, 0), &[]);
    }

    /// A program from this system with the libraries that it loads.
    fn program(&mut self, source: &Path, target: &str) {
        self.file(source, target);
        let Ok(listed) = Command::new("ldd").arg(source).output() else { return };
        for word in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
            if word.starts_with('/') {
                self.file(Path::new(word), word.trim_start_matches('/'));
            }
        }
    }

    fn file(&mut self, source: &Path, target: &str) {
        let content = fs::read(source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
        let mut parents: Vec<&Path> = Path::new(target).ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents.iter().filter(|parent| !parent.as_os_str().is_empty()) {
            self.directory(parent.to_str().expect("UTF-8"));
        }
        self.add(target, 0o100_755, (0, 0), &content);
    }
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.filter_map(Result::ok) {
        let path = entry.path();
        let found = match path.is_dir() {
            true => find(&path, name),
            false => (entry.file_name().to_str() == Some(name)).then_some(path),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// What every guest has, and its kernel's modules.
fn basis(kernel: &Path, modules: &[&str]) -> Archive {
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.add("dev/console", 0o020_600, (5, 1), &[]);
    archive.file(Path::new("/bin/busybox"), "bin/busybox");
    archive.file(Path::new("/bin/busybox"), "bin/sh");
    archive.directory("modules");
    for module in modules {
        let file = format!("{module}.ko");
        let path = find(&kernel.join("lib/modules"), &file)
            .unwrap_or_else(|| panic!("no module {file} below {kernel:?}"));
        archive.file(&path, &format!("modules/{file}"));
    }
    archive.add("modules/order", 0o100_644, (0, 0), modules.join("\n").as_bytes());
    let init = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/init.sh");
    archive.file(Path::new(init), "init");
    archive
}

fn programs(archive: &mut Archive, names: &[&str]) {
    for name in names {
        archive.program(&Path::new("/sbin").join(name), &format!("sbin/{name}"));
    }
}

fn initramfs() -> Archive {
    let mut archive = basis(&kernel(), &MODULES);
    archive.file(Path::new(env!("CARGO_BIN_EXE_hfl")), "bin/hfl");
    programs(&mut archive, &FOREIGN);
    let records = hfl::data::synthetic::records(1, 8);
    archive.add("data_batch_1.bin", 0o100_644, (0, 0), &records);
    archive
}

/// A guest with the parts of disks that `.ci/guest.sh` made, and what kata opens them with.
fn measured_disks() -> Archive {
    let modules: Vec<&str> = MODULES[..5].iter().chain(&VERITY_MODULES).copied().collect();
    let mut archive = basis(&kernel(), &modules);
    programs(&mut archive, &VERITY_PROGRAMS);
    for kind in ["superblock", "no-superblock"] {
        for part in ["root", "hash", "line"] {
            let path = format!("verity/{kind}/{part}");
            archive.file(&kernel().join(&path), &path);
        }
    }
    archive
}

fn kernel() -> PathBuf {
    PathBuf::from(std::env::var_os("HFL_GUEST_KERNEL").expect("HFL_GUEST_KERNEL"))
}

/// Boots the guest with that CPU and returns what it said.
fn boot(cpu: &str, more: &str, mut files: Archive) -> Vec<String> {
    let image = fs::read_dir(kernel().join("boot"))
        .expect("boot")
        .map(|entry| entry.expect("entry").path())
        .find(|path| path.to_string_lossy().contains("vmlinuz"))
        .expect("a kernel");
    files.add("TRAILER!!!", 0, (0, 0), &[]);
    // Guests of one process run side by side.
    static BOOTS: AtomicUsize = AtomicUsize::new(0);
    let number = BOOTS.fetch_add(1, Ordering::Relaxed);
    let name = format!("hfl-guest-{number}-{}", std::process::id());
    let archive = std::env::temp_dir().join(name);
    fs::write(&archive, files.bytes).expect("write");
    let output = Command::new("timeout")
        .arg(format!("{MINUTES_MAX}m"))
        .args(["qemu-system-x86_64", "-accel", "tcg", "-cpu", cpu, "-smp", "2", "-m", "4096"])
        .args(["-nographic", "-no-reboot", "-nic", "none"])
        // On a busy machine the emulated timer is late, and the kernel's check of it at boot would panic.
        .arg("-append")
        .arg(format!("console=ttyS0 panic=-1 quiet loglevel=3 no_timer_check {more}"))
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(&archive)
        .output()
        .expect("qemu-system-x86_64");
    fs::remove_file(&archive).expect("remove");
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect()
}

/// Asserts that the guest came to its end, that no check failed, and that there were enough.
fn check(lines: &[String], least: usize) {
    let count = |prefix: &str| lines.iter().filter(|line| line.contains(prefix)).count();
    println!("{} checks passed in the guest", count("ok "));
    let tail = lines[lines.len().saturating_sub(40)..].join("\n");
    assert_eq!(count("FAILED"), 0, "{}", lines.join("\n"));
    assert!(lines.iter().any(|line| line == "end"), "the guest ended early:\n{tail}");
    assert!(count("ok ") >= least, "only {} checks:\n{tail}", count("ok "));
}

#[test]
#[ignore = "needs a kernel image and qemu: .ci/guest.sh"]
fn volumes_work_under_a_real_kernel_and_leave_nothing_behind() {
    check(&boot("max", "", initramfs()), CHECKS_MIN);
}

#[test]
#[ignore = "needs a kernel image and qemu: .ci/guest.sh"]
fn a_cpu_without_vector_extensions_trains_on_the_portable_tier() {
    check(&boot("qemu64", "hfl.tier=portable", initramfs()), 3);
}

#[test]
#[ignore = "needs a kernel image and qemu: .ci/guest.sh"]
fn measured_disks_are_opened_as_kata_opens_them() {
    check(&boot("max", "hfl.verity", measured_disks()), 19);
}
