//! The statement of `evaluation.sigstore.json`: an in-toto test result of what was found inside TDs.

use serde_json::{Value, json};

use crate::job::Job;
use crate::passport::{Files, described, statement, subjects};

/// The type of its predicate.
const KIND: &str = "https://in-toto.io/attestation/test-result/v0.1";

/// Images that were found right, and all, after so many steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tested {
    /// Updates that the model had.
    pub step: u64,
    /// Images of which it found the class.
    pub right: u64,
    /// All of them.
    pub images: u64,
}

/// The statement about these files.
pub fn make(files: &Files, job: &Job, tested: &Tested) -> Value {
    let Tested { step, right, images } = tested;
    let mut configuration = described("job", &job.digest());
    configuration["annotations"] = json!({
        "images": images, "right": right, "step": step,
        "where": "each worker, in its TD, on test images of its own; summed by ps0, in its TD",
    });
    let share = 100.0 * *right as f64 / (*images).max(1) as f64;
    let found = format!("accuracy after step {step}: {right} of {images} ({share:.2} %)");
    let predicate = json!({
        "result": "PASSED", "configuration": [configuration], "passedTests": [found],
        "warnedTests": [], "failedTests": [],
    });
    statement(subjects(files), KIND, predicate)
}

/// Whether a statement is about these files and this job; what was found.
pub fn read(found: &Value, files: &Files, job: &Job) -> Option<Tested> {
    let annotations = found.get("predicate")?.get("configuration")?.get(0)?.get("annotations")?;
    let number = |name: &str| annotations.get(name)?.as_u64();
    let (step, right, images) = (number("step")?, number("right")?, number("images")?);
    let tested = Tested { step, right, images };
    (make(files, job, &tested) == *found).then_some(tested)
}

impl std::fmt::Display for Tested {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} of {} test images right after step {}", self.right, self.images, self.step)
    }
}
