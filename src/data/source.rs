//! `Source`: labelled pictures of whatever files there are, before they are what a job wants.

use std::path::{Path, PathBuf};

use crate::data::dataset::{Dataset, Shard, Split};
use crate::data::error::DataError;
use crate::data::hold_out::HoldOut;
use crate::data::picture::{self, Picture};
use crate::data::place::Place;
use crate::data::resize::{self, Cut};
use crate::data::{cifar, folder, npz};
use crate::job::classes::ClassNames;
use crate::job::shape::{CLASSES_MAX, Shape};
use crate::job::{Job, Normalisation};
use crate::progress::{Progress, Unit};

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

#[derive(Debug)]
enum Pixels {
    /// CIFAR's: `[N][3][32][32]`.
    Planes(Vec<u8>),
    /// NumPy's: `[N][rows][columns][channels]`.
    Arrays([usize; 3], Vec<u8>),
    Files(Vec<PathBuf>),
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
            (Some(npz), None) => {
                of_arrays(place, npz::parse(&npz, &place.read(&npz, npz::LEN_MAX)?, split)?)
            }
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
        match &self.pixels {
            Pixels::Files(files) => files.iter().map(|file| file.display().to_string()).collect(),
            Pixels::Planes(_) | Pixels::Arrays(..) => {
                (0..self.len()).map(|index| index.to_string()).collect()
            }
        }
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

    /// The pictures as a job is evaluated on them, decoded and resized on so many threads, in the order of the files.
    ///
    /// # Errors
    /// When the job has not all classes of these, or a picture is broken.
    pub fn load(self, job: &Job, threads: usize) -> Result<Dataset, DataError> {
        let cut = Cut::to_evaluate(job);
        self.shaped(job.shape, cut, &job.classes, job.normalisation, threads)
    }

    /// The pictures as a job learns from them: larger, where it sees parts of them.
    ///
    /// # Errors
    /// As [`Source::load`].
    pub fn load_to_learn(self, job: &Job, threads: usize) -> Result<Dataset, DataError> {
        let cut = Cut::to_learn(job);
        self.shaped(job.shape, cut, &job.classes, job.normalisation, threads)
    }

    fn shaped(
        self,
        shape: Shape,
        cut: Cut,
        classes: &ClassNames,
        normalisation: Normalisation,
        threads: usize,
    ) -> Result<Dataset, DataError> {
        let numbers = self.numbers_in(classes)?;
        let record_len = 1 + cut.kept * cut.kept * shape.channels;
        let mut records = vec![0; self.len() * record_len];
        let part = self.len().div_ceil(threads.max(1)).max(1);
        let progress = Progress::new("decoded", self.len() as u64, Unit::Images);
        let fill = |first: usize, part: &mut [u8]| {
            let mut broken = Vec::new();
            for (index, record) in part.chunks_exact_mut(record_len).enumerate() {
                let index = first + index;
                record[0] = numbers[usize::from(self.labels[index])];
                match self.pixels.write(&self.place, index, cut, &mut record[1..]) {
                    Err(why @ DataError::Picture(..)) if self.skips_broken => {
                        broken.push((index, why));
                    }
                    written => written?,
                }
                progress.advance(1);
            }
            Ok(broken)
        };
        let outcomes: Vec<Result<Vec<(usize, DataError)>, DataError>> =
            std::thread::scope(|scope| {
                let parts = records.chunks_mut(part * record_len).enumerate();
                let fill = &fill;
                let running: Vec<_> = parts
                    .map(|(at, records)| scope.spawn(move || fill(at * part, records)))
                    .collect();
                running
                    .into_iter()
                    .map(|thread| thread.join().expect("a decoder that returns"))
                    .collect()
            });
        // The first of the files, whichever thread was first.
        let broken = outcomes.into_iter().collect::<Result<Vec<_>, DataError>>()?;
        let broken: Vec<_> = broken.into_iter().flatten().collect();
        self.leave_out(&broken, &mut records, record_len)?;
        Ok(Dataset::larger(shape, normalisation, cut.kept, records))
    }

    /// Takes the records of broken pictures out, and names each in the log.
    fn leave_out(
        &self,
        broken: &[(usize, DataError)],
        records: &mut Vec<u8>,
        record_len: usize,
    ) -> Result<(), DataError> {
        if broken.is_empty() {
            return Ok(());
        }
        broken.iter().for_each(|(_, why)| log::warn!("skipped {why}"));
        log::warn!("{}: {} of {} skipped", self.place.root().display(), broken.len(), self.len());
        if broken.len() == self.len() {
            return Err(DataError::Empty(self.place.root().into(), "whole picture".into()));
        }
        let mut out = broken.iter().map(|(index, _)| *index).peekable();
        let mut kept = 0;
        for index in 0..self.len() {
            if out.next_if_eq(&index).is_none() {
                records.copy_within(index * record_len..(index + 1) * record_len, kept);
                kept += record_len;
            }
        }
        records.truncate(kept);
        Ok(())
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
        let of_bytes = |bytes: &[u8], len: usize| {
            kept.clone().flat_map(|at| &bytes[at * len..][..len]).copied().collect()
        };
        let pixels = match &self.pixels {
            Pixels::Planes(planes) => Pixels::Planes(of_bytes(planes, Shape::CIFAR.image_len())),
            Pixels::Arrays(size, bytes) => {
                Pixels::Arrays(*size, of_bytes(bytes, size.iter().product()))
            }
            Pixels::Files(files) => {
                Pixels::Files(kept.clone().map(|at| files[at].clone()).collect())
            }
        };
        Ok(Self { labels: of_bytes(&self.labels, 1), pixels, ..self })
    }
}

impl Pixels {
    /// Writes a picture as `[3][kept][kept]`.
    fn write(
        &self,
        place: &Place,
        index: usize,
        cut: Cut,
        target: &mut [u8],
    ) -> Result<(), DataError> {
        let picture = match self {
            Self::Planes(planes) => {
                let (own, len) = (Shape::CIFAR.side, Shape::CIFAR.image_len());
                let planes = &planes[index * len..][..len];
                if cut == Cut::plain(own) {
                    target.copy_from_slice(planes);
                    return Ok(());
                }
                let colours = |at| [0, 1, 2].map(|channel| planes[channel * own * own + at]);
                let rgb = (0..own * own).flat_map(colours).collect();
                Picture { width: own, height: own, rgb }
            }
            Self::Arrays([height, width, channels], bytes) => {
                let len = height * width * channels;
                let bytes = &bytes[index * len..][..len];
                let rgb = match channels {
                    1 => bytes.iter().flat_map(|&grey| [grey; 3]).collect(),
                    _ => bytes.to_vec(),
                };
                Picture { width: *width, height: *height, rgb }
            }
            Self::Files(files) => decode(place, &files[index])?,
        };
        target.copy_from_slice(&resize::square(&picture, cut));
        Ok(())
    }
}

/// Reads and decodes a picture file.
fn decode(place: &Place, path: &Path) -> Result<Picture, DataError> {
    let bytes = place.read(path, folder::FILE_LEN_MAX)?;
    picture::decode(&bytes).map_err(|why| DataError::Picture(path.into(), why))
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
