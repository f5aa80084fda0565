//! Room that a role needs, looked at before it starts: memory for a step, and place for two checkpoints.

use std::fs;
use std::path::Path;

use rustix::fs::statvfs;

use crate::failure::{Doing, Failure};
use crate::job::Job;
use crate::model::Model;
use crate::model::network::Network;

/// Bytes that this process may still use: of the machine, or of its control group if that is less. `None` where
/// the system does not say.
pub fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    let number = |name: &str| {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let limit = number("memory.max").zip(number("memory.current"));
    let left = limit.map_or(u64::MAX, |(max, current)| max.saturating_sub(current));
    Some(left.min(kib << 10))
}

/// Fails if a worker's step of `batch_max` images does not fit, with the largest batch that does.
///
/// # Errors
/// With what it needs and what there is.
pub fn check_memory(job: &Job, network: &Network, batch_max: usize) -> Result<(), Failure> {
    let have = memory_available().unwrap_or(u64::MAX);
    let need = |images: usize| {
        // Beside the step: parameters, and gradients on their way and in the cipher.
        let buffers = 4 * network.layout.len * size_of::<f32>();
        (Model::memory_len(network, job.precision, images) + buffers) as u64
    };
    if need(batch_max) <= have {
        return Ok(());
    }
    let fits = (0..batch_max).rev().find(|&images| images == 0 || need(images) <= have);
    let failure = Failure::new(format!(
        "a step of {batch_max} images needs about {} MiB of memory, {} are free: {}",
        need(batch_max) >> 20,
        have >> 20,
        match fits.unwrap_or(0) {
            0 => "not even one image fits".into(),
            images => format!("{images} images fit"),
        }
    ));
    Err(failure.hint("a smaller --batch-size for ps0, or a larger machine"))
}

/// Fails if a directory has no place for so many bytes.
///
/// # Errors
/// With what is needed and what there is.
pub fn check_disk(directory: &Path, need: u64) -> Result<(), Failure> {
    let stat = statvfs(directory).doing(directory.display())?;
    let have = stat.f_bavail.saturating_mul(stat.f_frsize);
    if need <= have {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{}: checkpoints need {} MB more (the last one is kept until the next is safe), {} MB are free",
        directory.display(),
        need.div_ceil(1_000_000),
        have / 1_000_000
    ))
    .hint("another --model-dir, or make room there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let here = std::env::temp_dir();
        assert!(check_disk(&here, 1).is_ok());
        let refused = check_disk(&here, u64::MAX).expect_err("no disk has that").to_string();
        assert!(refused.contains("MB more") && refused.contains("--model-dir"), "{refused}");
        assert!(memory_available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
