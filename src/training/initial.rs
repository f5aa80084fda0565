//! The parameters that a job begins with: by its seed, or out of a file.

use std::path::Path;

use crate::failure::{Doing, Failure};
use crate::job::Job;
use crate::model::network::Network;
use crate::model::{init, params};
use crate::training::checkpoint;

/// Parameters as the job's seed gives them.
pub fn by_seed(job: &Job, network: &Network) -> Vec<f32> {
    init::initialise(&network.layout, job.seed, init::IDENTITY_BLOCKS)
}

/// Parameters in a file, whose hash becomes part of the job.
///
/// # Errors
/// When the file has none for this network.
pub fn of_file(job: &mut Job, network: &Network, path: &Path) -> Result<Vec<f32>, Failure> {
    let fresh = |values: &mut [f32]| {
        init::initialise_in(&network.layout, job.seed, init::IDENTITY_BLOCKS, values);
    };
    let loaded = checkpoint::load_params(path, &network.layout, fresh);
    let initial = loaded.doing(format!("--init {}", path.display()))?;
    if let Some(others) = initial.other_classes {
        log::warn!(
            "--init {}: its classifier has {others} classes, this job {}: fc starts anew from seed {}",
            path.display(),
            job.shape.classes,
            job.seed
        );
    }
    job.init = Some(params::hash(&initial.params));
    Ok(initial.params)
}
