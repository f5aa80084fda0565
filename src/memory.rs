//! What memory this process may still take: of the machine, of its control groups, of its own limit.
//!
//! A kernel that overcommits refuses nothing: it ends a process (often another one) when pages are touched that
//! are not there. So who needs much asks here first.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// Memory that is left, by the tightest of the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Bytes.
    pub bytes: u64,
    /// Whose limit it is, as messages name it.
    pub of: String,
}

/// A control group's files, by version.
struct Names {
    limit: &'static str,
    usage: &'static str,
    /// Entries of `memory.stat`: pages of files, which the kernel gives up before it ends a process.
    cached: [&'static str; 2],
}

const VERSION_1: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cached: ["total_active_file", "total_inactive_file"],
};
const VERSION_2: Names = Names {
    limit: "memory.max",
    usage: "memory.current",
    cached: ["active_file", "inactive_file"],
};

/// What this process may still take; `None` where nothing says so.
pub fn left() -> Option<Left> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let groups = groups(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    let of_groups = groups.iter().filter_map(|(names, folder)| of_group(names, folder));
    let all = of_machine(&read("/proc/meminfo")).into_iter().chain(of_groups);
    all.chain(of_process(&read("/proc/self/status"))).min_by_key(|left| left.bytes)
}

/// The kernel's estimate of what can be taken without swapping.
fn of_machine(meminfo: &str) -> Option<Left> {
    let bytes = kibibytes(meminfo, "MemAvailable:")?;
    Some(Left { bytes, of: "the machine".into() })
}

/// `ulimit -v`, less what is mapped.
fn of_process(status: &str) -> Option<Left> {
    let max = getrlimit(Resource::As).current?;
    let bytes = max.saturating_sub(kibibytes(status, "VmSize:")?);
    Some(Left { bytes, of: "this process (ulimit -v)".into() })
}

/// The value in KiB of a line that begins like this, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The folders of our control group and of those above it, each of which may have a limit. Inside a container
/// the path may be the host's, and what is mounted our own group: then that is the only one.
fn groups(own: &str, mounted: &Path) -> Vec<(Names, PathBuf)> {
    let mut groups = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (version, top): (fn() -> Names, _) = match controllers {
            "" => (|| VERSION_2, mounted.to_path_buf()),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (|| VERSION_1, mounted.join("memory"))
            }
            _ => continue,
        };
        let inner = Path::new(path.trim_start_matches('/'));
        // A path that leads up is of a group outside ours.
        let is_plain =
            inner.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        let folders = inner.ancestors().filter(|_| is_plain).map(|path| top.join(path));
        groups.extend(folders.map(|folder| (version(), folder)));
        groups.push((version(), top));
    }
    groups
}

fn of_group(names: &Names, folder: &Path) -> Option<Left> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    // Version 2 says "max" where there is no limit.
    let (limit, usage) = (number(names.limit)?, number(names.usage)?);
    let stat = read("memory.stat").unwrap_or_default();
    let cached = stat.lines().filter_map(|line| line.split_once(' '));
    let cached = cached.filter(|(name, _)| names.cached.contains(name));
    let cached: u64 = cached.filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok()).sum();
    let bytes = limit.saturating_sub(usage.saturating_sub(cached));
    Some(Left { bytes, of: format!("the control group {}", folder.display()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_says_what_is_left() {
        let left = left().expect("Linux");
        assert!((1 << 20..1 << 50).contains(&left.bytes), "{left:?}");
    }

    #[test]
    fn the_machines_estimate_is_in_kibibytes() {
        let text = "MemTotal:       24 kB\nMemFree: 1 kB\nMemAvailable:   23 kB\n";
        assert_eq!(of_machine(text).map(|left| left.bytes), Some(23 << 10));
        assert_eq!(of_machine("MemTotal: 24 kB\n"), None);
    }

    /// Folders as the kernel shows them; the least of what they leave.
    fn least(own: &str, files: &[(&str, &str)]) -> Option<u64> {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("hfl-groups-{}-{count}", std::process::id());
        let top = std::env::temp_dir().join(name);
        for (name, text) in files {
            let path = top.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("create");
            fs::write(path, text).expect("write");
        }
        let groups = groups(own, &top);
        let left = groups.iter().filter_map(|(names, folder)| of_group(names, folder));
        let least = left.map(|left| left.bytes).min();
        fs::remove_dir_all(&top).expect("remove");
        least
    }

    #[test]
    fn the_tightest_of_nested_groups_counts_and_pages_of_files_are_free() {
        let files = [
            ("memory.max", "max\n"),
            ("memory.current", "900\n"),
            ("pod/memory.max", "1000\n"),
            ("pod/memory.current", "700\n"),
            ("pod/memory.stat", "anon 300\nactive_file 150\ninactive_file 250\nshmem 9\n"),
            ("pod/main/memory.max", "max\n"),
            ("pod/main/memory.current", "700\n"),
        ];
        assert_eq!(least("0::/pod/main\n", &files), Some(700));
        assert_eq!(least("0::/other\n", &files), None);
    }

    #[test]
    fn version_1_has_a_folder_of_its_own_and_containers_see_only_theirs() {
        let files = [
            ("memory/memory.limit_in_bytes", "5000\n"),
            ("memory/memory.usage_in_bytes", "1500\n"),
            ("memory/memory.stat", "inactive_file 7\ntotal_inactive_file 500\n"),
        ];
        let own = "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n";
        assert_eq!(least(own, &files), Some(4000));
        assert_eq!(least("4:memory:/../../1\n", &files), Some(4000));
        assert_eq!(least("5:cpu:/\n", &files), None);
        assert_eq!(least("nonsense", &files), None);
    }
}
