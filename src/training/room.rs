//! Room for a job, looked at before it starts: memory for a step, disk for its checkpoints.
//!
//! Both were found out hours later, by a kernel that ends processes and by a write that fails.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use luks::ext4::capacity;
use rustix::fs::statvfs;

use crate::failure::{Doing, Failure};
use crate::job::{Job, Precision, Wire};
use crate::memory;
use crate::model::Model;
use crate::model::inference::Inference;
use crate::model::network::Network;
use crate::model::params::Layout;
use crate::training::checkpoint;
use crate::training::evaluator::BATCH;
use crate::training::store::Store;

/// What a process takes besides: stacks of threads, records of TLS, what its allocator keeps.
const BESIDES: u64 = 32 << 20;
/// What a parameter server takes for each worker: chunks on their way in and out.
const CONNECTION: u64 = 4 << 20;
/// The files beside the checkpoint: description, roster, history, report.
const SMALL_FILES: u64 = 4 << 20;
/// What a volume's file has besides its data: header, keyslots, the journal and tables of its file system.
const HEADER: u64 = 24 << 20;

/// Bytes that a worker of so many samples takes besides its data: a step, what it keeps for the exchange, and an
/// evaluation where the job asks for one.
pub fn of_worker(job: &Job, network: &Network, samples: usize) -> u64 {
    of_step(job.precision, network, samples.min(job.batch_max() as usize))
        + kept_for_rounds(job, &network.layout)
        + of_evaluator(job, network)
}

/// Bytes of a step of batches of up to `batch_max` images, parameters, those that come in meanwhile, gradients, and
/// gradients that wait to be sent over a slow line.
fn of_step(precision: Precision, network: &Network, batch_max: usize) -> u64 {
    let images = batch_max * network.shape.image_len() * size_of::<f32>();
    let step = Model::memory_len(network, precision, batch_max) + images;
    step as u64 + 4 * values(network.layout.len) + BESIDES
}

/// Bytes that an evaluation takes besides, while a step's stay where they are: where a job asks for one.
fn of_evaluator(job: &Job, network: &Network) -> u64 {
    match job.evaluation.every {
        0 => 0,
        _ => {
            let images = BATCH * network.shape.image_len() * size_of::<f32>();
            (Inference::memory_len(network, BATCH) + images) as u64
        }
    }
}

/// Bytes that a worker keeps for a job's exchange: what rounding left, parameters of before, velocity.
fn kept_for_rounds(job: &Job, layout: &Layout) -> u64 {
    let carried = usize::from(job.wire == Wire::Int8);
    let own = if job.is_local() { 2 } else { 0 };
    values((carried + own) * layout.trained)
}

/// Bytes that a parameter server takes: parameters, velocity, averages and sums; before that, where there is a
/// checkpoint, the file and what is read from it.
pub fn of_server(job: &Job, layout: &Layout, resumes: bool) -> u64 {
    let averages = if job.recipe.averages() { layout.len } else { 0 };
    let state = values(layout.len + layout.trained + averages);
    let training = state + values(layout.len);
    let reading = if resumes { 2 * state } else { 0 };
    training.max(reading) + CONNECTION * u64::from(job.workers) + BESIDES
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
    let need = |batch_size: u32| of_worker(&Job { batch_size, ..job.clone() }, network, samples);
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

/// Bytes that pictures may take in memory beside a job of a worker with so many samples, and beside the batch that is
/// made ahead where they do not fit. An eighth is left to whatever else grows.
pub fn for_pictures(job: &Job, network: &Network, samples: usize) -> u64 {
    let batch = samples.min(job.batch_max() as usize);
    let ahead = batch * network.shape.image_len() * size_of::<f32>();
    memory::left().map_or(u64::MAX, |left| {
        left.bytes.saturating_sub(of_worker(job, network, samples) + ahead as u64) / 8 * 7
    })
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
    let need = of_server(job, layout, resumes);
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

/// Bytes of a job's checkpoints and what is beside them: the last one is kept until the next is whole, and the best
/// one beside it.
fn of_checkpoints(job: &Job, layout: &Layout) -> u64 {
    let checkpoints = if job.evaluation.every > 0 { 3 } else { 2 };
    checkpoints * checkpoint::len_max(layout, job.recipe.averages()) + SMALL_FILES
}

/// Fails if the place of a model has not the room for its checkpoints.
///
/// # Errors
/// With what is needed and what is left.
pub fn check_store(store: &Store, job: &Job, layout: &Layout) -> Result<(), Failure> {
    let names = [checkpoint::DATA_FILE, checkpoint::BEST_FILE];
    let mut there = 0;
    for name in names {
        there += store.len_of(name).doing(store.name_of(name))?;
    }
    let whole = of_checkpoints(job, layout);
    match store {
        Store::Directory(path) => {
            for name in names.map(Store::unfinished) {
                there += store.len_of(&name).doing(store.name_of(&name))?;
            }
            check_disk(path, whole.saturating_sub(there))
                .map_err(|failure| failure.hint("make room there, or another --model-dir"))
        }
        Store::Volume(sealed) => {
            let need = whole.saturating_sub(there);
            let left = sealed.free_space().doing(sealed.path().display())?;
            if left < need {
                return Err(too_little(sealed.path(), need, left).hint(LARGER));
            }
            check_sparse(sealed.path(), whole)
        }
    }
}

/// What to do about a volume that is too small.
const LARGER: &str =
    "a larger file or device, then hfl luks resize; or a new one: --size, --create-volume";

/// Fails if a volume that is about to be made would have no room for a job's checkpoints, or the file system below it.
///
/// # Errors
/// With what is needed and what there would be.
pub fn check_new_volume(path: &Path, size: u64, job: &Job, layout: &Layout) -> Result<(), Failure> {
    check_size(path, size, of_checkpoints(job, layout))
}

fn check_size(path: &Path, size: u64, need: u64) -> Result<(), Failure> {
    let left = capacity(luks::Options::new(size).data_len());
    if left < need {
        return Err(too_little(path, need, left).hint(LARGER));
    }
    if path.exists() {
        // A device: nothing lies below it.
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    check_disk(folder.unwrap_or(Path::new(".")), need)
        .map_err(|failure| failure.hint("make room there, or another place for the volume"))
}

/// Room for checkpoints, the best one among them, in a volume that nobody opens: what its data could hold at most, of
/// what is needed, and whether the file system below has it.
///
/// # Errors
/// With what is needed and what is left.
pub fn check_closed_volume(path: &Path, data_len: u64, layout: &Layout) -> Result<String, Failure> {
    let (need, most) = (of_checkpoints(&Job::default(), layout), capacity(data_len));
    if most < need {
        return Err(too_little(path, need, most).hint(LARGER));
    }
    check_sparse(path, need)?;
    Ok(format!("{} inside, checkpoints take {}", mebibytes(most), mebibytes(need)))
}

/// Fails if a sparse file cannot get its blocks when they are written.
fn check_sparse(path: &Path, need: u64) -> Result<(), Failure> {
    let meta = fs::metadata(path).doing(path.display())?;
    if !meta.is_file() {
        return Ok(());
    }
    // What the file has of its blocks it keeps, and the file system inside takes the first that are free there.
    let has = meta.blocks() * 512;
    let missing = (need + HEADER).saturating_sub(has).min(meta.len().saturating_sub(has));
    check_disk(path, missing).map_err(|failure| {
        failure.hint("make room where the volume's file lies: it is sparse (create --preallocate takes it at once)")
    })
}

fn check_disk(path: &Path, need: u64) -> Result<(), Failure> {
    let found = statvfs(path).doing(path.display())?;
    let left = found.f_bavail.saturating_mul(found.f_frsize);
    // Some network file systems count nothing.
    if left >= need || found.f_blocks == 0 {
        return Ok(());
    }
    Err(too_little(path, need, left))
}

fn too_little(path: &Path, need: u64, left: u64) -> Failure {
    Failure::new(format!(
        "{}: checkpoints, the last one until the next is whole, take {} more, {} are left",
        path.display(),
        mebibytes(need),
        mebibytes(left)
    ))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::evaluation::Evaluation;
    use crate::job::recipe::Recipe;
    use crate::job::shape::Shape;
    use crate::job::{Arch, Stem};

    #[test]
    fn the_largest_that_fits_is_found() {
        for end in 1..40 {
            for most in 0..end {
                assert_eq!(largest(end, |batch| batch <= most), most, "below {end}");
            }
        }
    }

    #[test]
    fn an_evaluation_counts_where_the_job_asks_for_one() {
        let job = Job::default();
        let network = Network::of(&job).expect("shapes");
        let none = Job { evaluation: Evaluation { every: 0, patience: None }, ..job.clone() };
        assert_eq!(of_evaluator(&none, &network), 0);
        // Parameters, and the first layer's activations of a batch of 64: of three sizes of 64 channels.
        let least = values(network.layout.len + 64 * 64 * 16 * 16);
        let taken = of_evaluator(&job, &network);
        assert_eq!(of_worker(&job, &network, 9) - of_worker(&none, &network, 9), taken);
        assert!(taken > least && taken < 4 * least, "{taken} for at least {least}");
        let grouped = Job { norm: crate::job::norm::Norm::Group, ..job };
        let grouped_network = Network::of(&grouped).expect("shapes");
        assert!(of_evaluator(&grouped, &grouped_network) + values(53_120) > taken);
    }

    #[test]
    fn a_disk_without_room_is_named_with_both_numbers() {
        let path = std::env::temp_dir();
        check_disk(&path, 1).expect("a byte");
        let refused = check_disk(&path, 1 << 60).expect_err("an exbibyte").to_string();
        assert!(refused.contains(&path.display().to_string()), "{refused}");
        assert!(refused.contains("take 1099511627776 MiB more"), "{refused}");
    }

    #[test]
    fn volumes_that_are_too_small_are_refused_before_they_are_made() {
        let layout =
            Network::new(Arch::default(), Stem::Imagenet, Shape::default()).expect("fits").layout;
        let path = std::env::temp_dir().join("no-such-volume");
        let job = Job::default();
        let blind = Job { evaluation: Evaluation { every: 0, patience: None }, ..job.clone() };
        for (mib, fits) in [(16, false), (64, false), (150, false), (380, false), (420, true)] {
            let checked = check_size(&path, mib << 20, of_checkpoints(&blind, &layout));
            assert_eq!(checked.is_ok(), fits, "{mib} MiB: {checked:?}");
        }
        let refused = check_size(&path, 150 << 20, of_checkpoints(&job, &layout));
        let refused = refused.expect_err("small").to_string();
        assert!(refused.contains("take 5") && refused.contains("--create-volume"), "{refused}");
        let recipe = Recipe { ema: 0.99, ..Recipe::default() };
        let averages = Job { recipe, ..blind.clone() };
        let more = of_checkpoints(&averages, &layout) - of_checkpoints(&blind, &layout);
        let server = of_server(&averages, &layout, false) - of_server(&blind, &layout, false);
        assert_eq!([more, server], [2 * values(layout.len), values(layout.len)]);
    }
}
