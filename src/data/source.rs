//! `Source`: labelled pictures of whatever files there are, before they are what a job wants.

use std::path::{Path, PathBuf};

use crate::data::dataset::{Dataset, Shard, Split};
use crate::data::error::DataError;
use crate::data::hold_out::HoldOut;
use crate::data::loading::{Loading, Pictures};
use crate::data::pixels::Pixels;
use crate::data::place::Place;
use crate::data::record::Form;
use crate::data::{cifar, folder, npz};
use crate::job::classes::ClassNames;
use crate::job::shape::{CLASSES_MAX, Shape};
use crate::job::{Job, Normalisation};

/// The pictures of a directory or file, and what their classes are called there.
#[derive(Debug)]
pub struct Source {
    place: Place,
    format: &'static str,
    names: Names,
    /// One class a picture, as numbers of `names`.
    labels: Vec<u8>,
    pixels: Pixels,
    skips_broken: bool,
}

/// Which pictures of a path.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// To learn from, or to test with.
    pub split: Split,
    /// A part of these.
    pub shard: Option<Shard>,
    /// What parts `CLASS/*`.
    pub hold_out: Option<HoldOut>,
}

/// How data calls its classes.
#[derive(Debug)]
enum Names {
    Known(Vec<String>),
    /// By numbers; a job's names are as many as these at least.
    Numbered,
}

impl Source {
    /// [`Source::select`] of a split, or a shard of it.
    ///
    /// # Errors
    /// As there.
    pub fn open(path: &Path, split: Split, shard: Option<Shard>) -> Result<Self, DataError> {
        Self::select(path, Selection { split, shard, hold_out: None })
    }

    /// Recognises what is at `path` and lists it: CIFAR-10's or CIFAR-100's binary files, a folder of class
    /// folders, or an `.npz` file, named itself or the only one of the directory.
    ///
    /// # Errors
    /// When it is none of them, or damaged; the error names the file.
    pub fn select(path: &Path, selection: Selection) -> Result<Self, DataError> {
        Self::select_in(&Place::directory(path), selection)
    }

    /// The same of a place, which may be the inside of a volume.
    ///
    /// # Errors
    /// As [`Source::select`].
    pub fn select_in(place: &Place, selection: Selection) -> Result<Self, DataError> {
        let Selection { split, shard, hold_out } = selection;
        let npz = npz_file(place)?;
        let is_there = |split: &Split| place.is_dir(&folder::of_split(place, *split));
        let is_parted = [Split::Train, Split::Test].iter().any(is_there);
        let all = match (npz, hold_out) {
            (None, Some(hold_out)) if !is_parted => {
                of_folder(place, folder::scan_parted(place, split, hold_out)?)?
            }
            (_, Some(_)) => {
                let why = "--hold-out parts CLASS/PICTURE, and here train and test are apart";
                return Err(DataError::Format(place.root().into(), why.into()));
            }
            (Some(npz), None) => of_arrays(place, npz::list(place, &npz, split)?),
            (None, None) if is_parted => of_folder(place, folder::scan(place, split)?)?,
            (None, None) => of_cifar(place, cifar::read(place, split)?),
        };
        match shard {
            None => Ok(all),
            Some(shard) => all.part(shard),
        }
    }

    /// The same; `None` where there is nothing of this split.
    ///
    /// # Errors
    /// When what is there is damaged.
    pub fn select_if_any(place: &Place, selection: Selection) -> Result<Option<Self>, DataError> {
        match Self::select_in(place, selection) {
            Err(error) if error.is_absence() => Ok(None),
            selected => selected.map(Some),
        }
    }

    /// Leaves out pictures that are broken, with a line in the log for each, if it is asked to.
    #[must_use]
    pub fn skipping_broken(self, skips_broken: bool) -> Self {
        Self { skips_broken, ..self }
    }

    /// Picture files whose classes nobody knows.
    pub fn pictures(files: Vec<PathBuf>) -> Self {
        Self {
            place: Place::directory(PathBuf::new()),
            format: "pictures",
            names: Names::Numbered,
            labels: vec![0; files.len()],
            pixels: Pixels::Files(files),
            skips_broken: false,
        }
    }

    /// What each picture is called: its file, or its number.
    pub fn titles(&self) -> Vec<String> {
        (0..self.len()).map(|index| self.pixels.title(index)).collect()
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Never: that is an error.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// What kind of files these are.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// Names of the classes here, and how many pictures each has.
    pub fn classes(&self) -> Vec<(String, usize)> {
        let mut counts = [0; CLASSES_MAX];
        self.labels.iter().for_each(|&label| counts[usize::from(label)] += 1);
        let most = self.labels.iter().max().map_or(0, |&label| usize::from(label) + 1);
        let names = match &self.names {
            Names::Known(names) => names.clone(),
            Names::Numbered => (0..most).map(|class| class.to_string()).collect(),
        };
        names.into_iter().zip(counts).collect()
    }

    /// The pictures as a job is evaluated on them, in the order of the files.
    ///
    /// # Errors
    /// When the job has not all classes of these, or a picture is broken.
    pub fn load(self, job: &Job, loading: Loading) -> Result<Dataset, DataError> {
        let form = Form::to_evaluate(job);
        self.shaped(job.shape, form, &job.classes, job.normalisation, loading)
    }

    /// The pictures as a job learns from them: larger or whole, where it sees parts of them.
    ///
    /// # Errors
    /// As [`Source::load`].
    pub fn load_to_learn(self, job: &Job, loading: Loading) -> Result<Dataset, DataError> {
        let form = Form::to_learn(job);
        self.shaped(job.shape, form, &job.classes, job.normalisation, loading)
    }

    fn shaped(
        self,
        shape: Shape,
        form: Form,
        classes: &ClassNames,
        normalisation: Normalisation,
        Loading { threads, room }: Loading,
    ) -> Result<Dataset, DataError> {
        let numbers = self.numbers_in(classes)?;
        let Self { place, labels, pixels, skips_broken, .. } = self;
        let labels = labels.into_iter().map(|label| numbers[usize::from(label)]).collect();
        let pictures = Pictures { place, pixels, labels, form, skips_broken, threads };
        Ok(Dataset::of(shape, normalisation, form, pictures.load(room)?))
    }

    /// The job's number of each class here.
    fn numbers_in(&self, job: &ClassNames) -> Result<Vec<u8>, DataError> {
        let refuse = |unknown: Vec<String>| DataError::Classes {
            data: self.place.root().into(),
            unknown,
            job: job.names().into(),
        };
        let here: Vec<String> = self.classes().into_iter().map(|(name, _)| name).collect();
        if let Names::Numbered = self.names {
            return match here.len() <= job.len() {
                true => Ok((0..=u8::MAX).take(here.len()).collect()),
                false => Err(refuse(here[job.len()..].to_vec())),
            };
        }
        let number = |name: &String| job.index(name).and_then(|index| u8::try_from(index).ok());
        let unknown: Vec<String> =
            here.iter().filter(|name| number(name).is_none()).cloned().collect();
        if !unknown.is_empty() {
            return Err(refuse(unknown));
        }
        Ok(here.iter().filter_map(number).collect())
    }

    /// Every `of`-th picture, from `index` on.
    fn part(self, shard: Shard) -> Result<Self, DataError> {
        let Shard { index, of } = shard;
        let kept = (index..self.len()).step_by(of);
        if kept.len() == 0 {
            return Err(DataError::Empty(
                self.place.root().into(),
                format!("record for shard {index}/{of}"),
            ));
        }
        let labels = kept.clone().map(|at| self.labels[at]).collect();
        Ok(Self { labels, pixels: self.pixels.only(kept), ..self })
    }
}

/// The `.npz` that a path names, or the only one of a directory.
fn npz_file(place: &Place) -> Result<Option<PathBuf>, DataError> {
    let path = place.root();
    let is_npz = |path: &Path| path.extension().is_some_and(|extension| extension == "npz");
    if place.is_file(path) {
        return match is_npz(path) {
            true => Ok(Some(path.into())),
            false => {
                Err(DataError::Format(path.into(), "a file, expected a directory or .npz".into()))
            }
        };
    }
    let mut found = place.list(path)?;
    found.retain(|path| is_npz(path));
    match found.len() {
        0 | 1 => Ok(found.pop()),
        many => Err(DataError::Format(path.into(), format!("{many} .npz files; --data with one"))),
    }
}

fn of_arrays(place: &Place, arrays: npz::Arrays) -> Source {
    let npz::Arrays { size, images, labels } = arrays;
    Source {
        place: place.clone(),
        format: ".npz arrays",
        names: Names::Numbered,
        labels,
        pixels: Pixels::Arrays(size, images),
        skips_broken: false,
    }
}

fn of_folder(place: &Place, folder: folder::Folder) -> Result<Source, DataError> {
    let folder::Folder { names, files } = folder;
    let names =
        ClassNames::new(names).map_err(|why| DataError::Format(place.root().into(), why))?;
    let labels = files.iter().map(|(_, class)| *class as u8).collect();
    Ok(Source {
        place: place.clone(),
        format: "pictures in class folders",
        names: Names::Known(names.into()),
        labels,
        pixels: Pixels::Files(files.into_iter().map(|(file, _)| file).collect()),
        skips_broken: false,
    })
}

fn of_cifar(place: &Place, records: cifar::Records) -> Source {
    let cifar::Records { classes, labels, planes } = records;
    Source {
        place: place.clone(),
        format: if classes.len() == 10 { "CIFAR-10 records" } else { "CIFAR-100 records" },
        names: Names::Known(classes.into()),
        labels,
        pixels: Pixels::Planes(planes),
        skips_broken: false,
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
