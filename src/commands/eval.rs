//! `hfl eval`: accuracy, per-class table and confusion matrix of a saved model.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::time::Instant;

use kernels::Isa;
use serde::Serialize;

use crate::commands::calibration::Calibration;
use crate::data::batch::Batch;
use crate::data::loading::Loading;
use crate::data::source::{Selection, Source};
use crate::failure::{Doing, Failure};
use crate::progress::{Progress, Unit};
use crate::training::classifier::{Saved, ranked};
use crate::training::store::Place;
use protocol::hex;

/// What a model does on a set of images.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Step of the checkpoint.
    pub step: u64,
    /// Steps of its whole job; the model is final where both are equal.
    pub steps: Option<u64>,
    /// Digest of the job.
    pub job: String,
    /// SHA-256 of the parameters.
    pub parameters: String,
    /// Images.
    pub images: usize,
    /// Share of images whose class was found.
    pub accuracy: f64,
    /// Share of images whose class is one of the five likeliest; `None` where there are no more than five.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top5: Option<f64>,
    /// Expected calibration error: how far certainty is from the share of right answers.
    pub calibration_error: f64,
    /// Each class of the job.
    pub classes: Vec<Class>,
    /// `confusion[class][found]` counts images.
    pub confusion: Vec<Vec<u64>>,
    /// Images a second.
    pub images_per_s: f64,
}

/// How well a class is known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// Images of it.
    pub images: u64,
    /// Share of what was taken for it that is of it; `None` where nothing was.
    pub precision: Option<f64>,
    /// Share of its images that was found; `None` where there are none.
    pub recall: Option<f64>,
}

/// Images of a batch: enough for every thread, and less memory than a training step of the default size takes.
const BATCH: usize = 256;
/// How many classes count for the second accuracy.
const TOP: usize = 5;

/// What is evaluated, on what, and how.
pub struct Options<'a> {
    /// Where the model is.
    pub place: &'a Place,
    /// The best parameters instead of the last.
    pub best: bool,
    /// Average each image's probabilities with those of its mirror image.
    pub mirrored: bool,
    /// Where the images are.
    pub data: &'a Path,
    /// Which of them.
    pub selection: Selection,
    /// Threads of the kernels.
    pub threads: usize,
    /// Their instruction set.
    pub isa: Isa,
    /// A CSV file for each image's outcome.
    pub predictions: Option<&'a Path>,
}

/// Evaluates a saved model.
///
/// # Errors
/// When model or data cannot be used, or the CSV file cannot be written.
pub fn run(options: &Options) -> Result<Evaluation, Failure> {
    let &Options { place, best, data, selection, threads, isa, predictions, .. } = options;
    let saved = Saved::open(place, best)?;
    let source = Source::select(data, selection).map_err(|error| {
        let hint = "--data with CIFAR's binary files, test/CLASS/PICTURE or an .npz file";
        Failure::new(error).hint(hint)
    })?;
    let titles = source.titles();
    let mut model = saved.ready(BATCH.min(source.len()), threads, isa)?;
    let set = source.load(&model.job, Loading::beside_all(threads)).map_err(Failure::new)?;
    let names = model.job.classes.names().to_vec();
    let mut confusion = vec![vec![0; names.len()]; names.len()];
    let mut among_top = 0;
    let mut calibration = Calibration::default();
    let mut table = heading(&names);
    let mut batch = Batch::default();
    let start = Instant::now();
    let progress = Progress::new("evaluated", set.len() as u64, Unit::Images);
    for first in (0..set.len()).step_by(BATCH) {
        let count = BATCH.min(set.len() - first);
        set.batch(first, count, &mut batch).map_err(Failure::new)?;
        let mut found = model.classify(&batch);
        if options.mirrored {
            set.mirrored_batch(first, count, &mut batch).map_err(Failure::new)?;
            average(&mut found, &model.classify(&batch));
        }
        for (index, probabilities) in found.iter().enumerate() {
            let (order, label) = (ranked(probabilities), usize::from(batch.labels[index]));
            confusion[label][order[0]] += 1;
            calibration.take(probabilities[order[0]], order[0] == label);
            among_top += u64::from(order.iter().take(TOP).any(|&class| class == label));
            if predictions.is_some() {
                let title = &titles[first + index];
                line(&mut table, title, [&names[label], &names[order[0]]], probabilities);
            }
        }
        progress.advance(batch.len() as u64);
    }
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();
    if let Some(path) = predictions {
        std::fs::write(path, table).doing(path.display())?;
    }
    let right: u64 = (0..names.len()).map(|class| confusion[class][class]).sum();
    let share = |count: u64| count as f64 / set.len() as f64;
    Ok(Evaluation {
        step: model.step,
        steps: model.steps,
        job: hex(&model.job.digest()),
        parameters: hex(&model.parameters),
        images: set.len(),
        accuracy: share(right),
        calibration_error: calibration.error(),
        top5: (names.len() > TOP).then(|| share(among_top)),
        classes: classes(names, &confusion),
        confusion,
        images_per_s: set.len() as f64 / seconds,
    })
}

fn average(found: &mut [Vec<f64>], others: &[Vec<f64>]) {
    for (probability, other) in found.iter_mut().flatten().zip(others.iter().flatten()) {
        *probability = (*probability + other) / 2.0;
    }
}

fn classes(names: Vec<String>, confusion: &[Vec<u64>]) -> Vec<Class> {
    let class = |(index, name): (usize, String)| {
        let right = confusion[index][index];
        let images = confusion[index].iter().sum();
        let taken: u64 = confusion.iter().map(|row| row[index]).sum();
        let share = |of: u64| (of > 0).then(|| right as f64 / of as f64);
        Class { name, images, precision: share(taken), recall: share(images) }
    };
    names.into_iter().enumerate().map(class).collect()
}

/// The CSV's first line (RFC 4180).
fn heading(names: &[String]) -> String {
    let mut line = "image,class,found".to_owned();
    for name in names {
        line.push(',');
        line.push_str(&field(name));
    }
    line + "\r\n"
}

fn line(table: &mut String, image: &str, classes: [&String; 2], probabilities: &[f64]) {
    let [class, found] = classes.map(|name| field(name));
    table.push_str(&format!("{},{class},{found}", field(image)));
    for probability in probabilities {
        // Writing to a string does not fail.
        let _ = write!(table, ",{probability:.6}");
    }
    table.push_str("\r\n");
}

/// A field of a CSV, in quotes where it has to be.
fn field(text: &str) -> String {
    match text.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.into(),
    }
}

/// Widest matrix that is shown: a line of a terminal.
const SHOWN_MAX: usize = 20;

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let of = match self.steps {
            Some(steps) if steps == self.step => format!("the last of job {}", self.job),
            Some(steps) => format!("of {steps} of job {}", self.job),
            None => format!("of job {}", self.job),
        };
        writeln!(f, "model       step {} {of}", self.step)?;
        writeln!(f, "parameters  sha256:{}", self.parameters)?;
        writeln!(f, "images      {} at {:.0} images/s", self.images, self.images_per_s)?;
        writeln!(f, "accuracy    {:.2} %", 100.0 * self.accuracy)?;
        if let Some(top5) = self.top5 {
            writeln!(f, "top 5       {:.2} %", 100.0 * top5)?;
        }
        writeln!(f, "calibration {:.2} % off", 100.0 * self.calibration_error)?;
        let width = self.classes.iter().map(|class| class.name.chars().count()).max().unwrap_or(0);
        let width = width.clamp(10, 30);
        write!(f, "\n{:width$} {:>7} {:>9} {:>8}", "class", "images", "precision", "recall")?;
        let shows_matrix = self.classes.len() <= SHOWN_MAX;
        if shows_matrix {
            write!(f, "   found as")?;
            for class in &self.classes {
                write!(f, " {:>5}", class.name.chars().take(5).collect::<String>())?;
            }
        }
        let percent = |share: Option<f64>| {
            share.map_or("-".into(), |share| format!("{:.1} %", 100.0 * share))
        };
        for (class, row) in self.classes.iter().zip(&self.confusion) {
            let (precision, recall) = (percent(class.precision), percent(class.recall));
            let Class { name, images, .. } = class;
            write!(f, "\n{name:width$} {images:>7} {precision:>9} {recall:>8}")?;
            if shows_matrix {
                write!(f, "           ")?;
                row.iter().try_for_each(|count| write!(f, " {count:>5}"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_and_recall_are_of_columns_and_rows() {
        let names = ["a", "b", "c"].map(String::from).to_vec();
        let found = classes(names, &[vec![3, 1, 0], vec![1, 1, 0], vec![0, 0, 0]]);
        let of = |index: usize| (found[index].images, found[index].precision, found[index].recall);
        assert_eq!(of(0), (4, Some(0.75), Some(0.75)));
        assert_eq!(of(1), (2, Some(0.5), Some(0.5)));
        assert_eq!(of(2), (0, None, None));
    }

    #[test]
    fn fields_of_a_csv_are_quoted_where_they_have_to_be() {
        let mut table = heading(&["cat".into(), "a,b".into()]);
        line(&mut table, "x \"1\".png", [&"cat".into(), &"a,b".into()], &[0.25, 0.75]);
        assert_eq!(
            table,
            "image,class,found,cat,\"a,b\"\r\n\"x \"\"1\"\".png\",cat,\"a,b\",0.250000,0.750000\r\n"
        );
    }
}
