//! `hfl predict`: the likeliest classes of pictures by a saved model.

use std::fmt;
use std::path::PathBuf;

use kernels::Isa;
use serde::Serialize;

use crate::data::batch::Batch;
use crate::data::loading::Loading;
use crate::data::source::Source;
use crate::failure::Failure;
use crate::progress::{Progress, Unit};
use crate::training::classifier::{Saved, ranked};
use crate::training::store::Place;

/// What a picture shows, by a model.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// The file.
    pub image: String,
    /// The likeliest classes, the likeliest first.
    pub classes: Vec<Guess>,
}

/// A class, and how likely it is.
#[derive(Clone, Debug, Serialize)]
pub struct Guess {
    /// Its name.
    pub name: String,
    /// From 0 to 1; those of all classes add up to 1.
    pub probability: f64,
}

/// Images of a batch: few are asked for, and the first should not wait for memory that is never used.
const BATCH: usize = 32;

/// The `top` likeliest classes of each picture.
///
/// # Errors
/// When model or a picture cannot be used.
pub fn run(
    place: &Place,
    best: bool,
    images: Vec<PathBuf>,
    top: usize,
    threads: usize,
    isa: Isa,
) -> Result<Vec<Prediction>, Failure> {
    let source = Source::pictures(images);
    let titles = source.titles();
    let mut model = Saved::open(place, best)?.ready(BATCH.min(source.len()), threads, isa)?;
    let set = source.load(&model.job, Loading::beside_all(threads)).map_err(Failure::new)?;
    let mut batch = Batch::default();
    let mut predictions = Vec::with_capacity(titles.len());
    let mut titles = titles.into_iter();
    let progress = Progress::new("classified", set.len() as u64, Unit::Images);
    for first in (0..set.len()).step_by(BATCH) {
        set.batch(first, BATCH.min(set.len() - first), &mut batch).map_err(Failure::new)?;
        let found = model.classify(&batch);
        let names = model.job.classes.names();
        for (image, probabilities) in titles.by_ref().zip(&found) {
            let guess = |class: usize| {
                let probability = probabilities[class];
                Guess { name: names[class].clone(), probability }
            };
            let classes = ranked(probabilities).into_iter().take(top).map(guess).collect();
            predictions.push(Prediction { image, classes });
        }
        progress.advance(batch.len() as u64);
    }
    Ok(predictions)
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.image)?;
        for Guess { name, probability } in &self.classes {
            write!(f, "\n  {:>6.2} %  {name}", 100.0 * probability)?;
        }
        Ok(())
    }
}
