//! `Feed`: the batches of a worker's steps; where pictures are not in memory, the next one is read while a step runs.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::data::batch::Batch;
use crate::data::dataset::Dataset;
use crate::data::error::DataError;
use crate::data::sampler::Sampler;

/// A data set, and which of it makes the batch of a step.
pub struct Feed {
    data: Arc<Dataset>,
    sampler: Sampler,
    ahead: Option<Ahead>,
}

/// A batch that is being made before its step.
struct Ahead {
    step: u64,
    thread: JoinHandle<(Sampler, Result<Batch, DataError>)>,
}

impl Feed {
    /// Batches of that data.
    pub fn new(data: Dataset, sampler: Sampler) -> Self {
        Self { data: Arc::new(data), sampler, ahead: None }
    }

    /// The data.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// Which of it makes a batch.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Makes the batch of a step, of so many in all.
    ///
    /// # Errors
    /// When pictures cannot be read any more, or are others than they were.
    pub fn fill(&mut self, step: u64, steps: u64, batch: &mut Batch) -> Result<(), DataError> {
        match self.ahead.take() {
            None => self.sampler.fill(&self.data, step, batch)?,
            Some(Ahead { step: of, thread }) => {
                // Two at a time would be memory that nobody planned.
                let (sampler, made) = thread.join().expect("a thread that returns");
                // It has put an epoch into its order, which is sorting all of the data.
                self.sampler = sampler;
                match of == step {
                    true => *batch = made?,
                    false => self.sampler.fill(&self.data, step, batch)?,
                }
            }
        }
        if self.data.is_away() && step + 1 < steps {
            self.begin(step + 1);
        }
        Ok(())
    }

    fn begin(&mut self, step: u64) {
        let (data, mut sampler) = (Arc::clone(&self.data), self.sampler.clone());
        let make = move || {
            let mut batch = Batch::default();
            let made = sampler.fill(&data, step, &mut batch);
            (sampler, made.map(|()| batch))
        };
        // Without a thread it is made when it is needed.
        let thread = std::thread::Builder::new().name("pictures".into()).spawn(make);
        self.ahead = thread.ok().map(|thread| Ahead { step, thread });
    }
}
