//! Room for a job, looked at before it starts: memory for a step, disk for two checkpoints.
//!
//! Both were found out hours later, by a kernel that ends processes and by a write that fails.

use std::fs;
use std::path::Path;

use rustix::fs::statvfs;

use crate::failure::{Doing, Failure};
use crate::job::{Job, Precision, Wire};
use crate::memory;
use crate::model::Model;
use crate::model::network::Network;
use crate::model::params::Layout;
use crate::training::checkpoint;
use crate::training::store::Store;

/// What a process takes besides: stacks of threads, records of TLS, what its allocator keeps.
const BESIDES: u64 = 32 << 20;
/// What a parameter server takes for each worker: chunks on their way in and out.
const CONNECTION: u64 = 4 << 20;
/// The files beside the checkpoint: description, roster, history, report.
const SMALL_FILES: u64 = 4 << 20;

/// Bytes that a worker takes besides its data: a step of batches of up to `batch_max` images,
/// parameters, gradients, and gradients that wait to be sent over a slow line.
pub fn of_worker(precision: Precision, network: &Network, batch_max: usize) -> u64 {
    let images = batch_max * network.shape.image_len() * size_of::<f32>();
    let step = Model::memory_len(network, precision, batch_max) + images;
    step as u64 + 3 * values(network.layout.len) + BESIDES
}

/// Bytes that a worker keeps for a job's exchange: what rounding left, parameters of before, velocity.
fn kept_for_rounds(job: &Job, layout: &Layout) -> u64 {
    let carried = usize::from(job.wire == Wire::Int8);
    let own = if job.is_local() { 2 } else { 0 };
    values((carried + own) * layout.trained)
}

/// Bytes that a parameter server takes: parameters, velocity and sums; before that, where there is a
/// checkpoint, the file and what is read from it.
pub fn of_server(workers: u16, layout: &Layout, resumes: bool) -> u64 {
    let state = values(layout.len + layout.trained);
    let training = state + values(layout.len);
    let reading = if resumes { 2 * state } else { 0 };
    training.max(reading) + CONNECTION * u64::from(workers) + BESIDES
}

fn values(count: usize) -> u64 {
    (count * size_of::<f32>()) as u64
}

/// Fails if a worker with so many samples has not the memory for a step; says which batch would fit.
///
/// # Errors
/// With what is needed and what is left.
pub fn check_worker(job: &Job, network: &Network, samples: usize) -> Result<(), Failure> {
    let Some(left) = memory::left() else { return Ok(()) };
    let need = |batch_size: u32| {
        let job = Job { batch_size, ..job.clone() };
        of_worker(job.precision, network, samples.min(job.batch_max() as usize))
            + kept_for_rounds(&job, &network.layout)
    };
    let full = need(job.batch_size);
    if full <= left.bytes {
        return Ok(());
    }
    let fits = largest(job.batch_size, |batch| need(batch) <= left.bytes);
    let fits = match fits {
        0 => "not even one image would fit".into(),
        batch => format!("--batch-size {batch} would fit"),
    };
    let batch = samples.min(job.batch_size as usize);
    Err(Failure::new(format!(
        "a step of {batch} images ({} stem, {}) takes {} of memory, {} are left of {}; {fits}",
        job.stem,
        job.precision,
        mebibytes(full),
        mebibytes(left.bytes),
        left.of
    ))
    .hint("a smaller --batch-size at ps0, or more memory here"))
}

/// The largest number below `end` that fits, if all smaller ones do; 0 where none does.
fn largest(end: u32, fits: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (0, end);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match fits(middle) {
            true => low = middle,
            false => high = middle,
        }
    }
    low
}

/// Fails if a parameter server has not the memory for its job.
///
/// # Errors
/// With what is needed and what is left.
pub fn check_server(job: &Job, layout: &Layout, resumes: bool) -> Result<(), Failure> {
    let need = of_server(job.workers, layout, resumes);
    match memory::left() {
        Some(left) if left.bytes < need => Err(Failure::new(format!(
            "ps0 of {} workers takes {} of memory, {} are left of {}",
            job.workers,
            mebibytes(need),
            mebibytes(left.bytes),
            left.of
        ))
        .hint("more memory here")),
        _ => Ok(()),
    }
}

/// Fails if a model directory has not the room for its checkpoints: the last one is kept until the next is whole,
/// and the best one beside it. A volume's room is its own.
///
/// # Errors
/// With what is needed and what is left.
pub fn check_directory(store: &Store, job: &Job, layout: &Layout) -> Result<(), Failure> {
    let Store::Directory(path) = store else { return Ok(()) };
    let names = [checkpoint::DATA_FILE, checkpoint::BEST_FILE];
    let there = names.iter().flat_map(|&name| [name.to_owned(), Store::unfinished(name)]);
    let there = there.filter_map(|name| fs::metadata(path.join(name)).ok());
    let there: u64 = there.map(|meta| meta.len()).sum();
    let checkpoints = if job.evaluation.every > 0 { 3 } else { 2 };
    let need = checkpoints * checkpoint::len_max(layout) + SMALL_FILES;
    check_disk(path, need.saturating_sub(there))
}

fn check_disk(path: &Path, need: u64) -> Result<(), Failure> {
    let found = statvfs(path).doing(path.display())?;
    let left = found.f_bavail.saturating_mul(found.f_frsize);
    // Some network file systems count nothing.
    if left >= need || found.f_blocks == 0 {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{}: checkpoints, the last one until the next is whole, take {} more, {} are left",
        path.display(),
        mebibytes(need),
        mebibytes(left)
    ))
    .hint("make room there, or another --model-dir"))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_that_fits_is_found() {
        for end in 1..40 {
            for most in 0..end {
                assert_eq!(largest(end, |batch| batch <= most), most, "below {end}");
            }
        }
    }

    #[test]
    fn a_disk_without_room_is_named_with_both_numbers() {
        let path = std::env::temp_dir();
        check_disk(&path, 1).expect("a byte");
        let refused = check_disk(&path, 1 << 60).expect_err("an exbibyte").to_string();
        assert!(refused.contains(&path.display().to_string()), "{refused}");
        assert!(refused.contains("take 1099511627776 MiB more"), "{refused}");
        assert!(refused.contains("--model-dir"), "{refused}");
    }
}
