//! Whether a worker's pictures are there, in a directory or in a volume that is opened as the worker will.

use std::path::Path;

use luks::{Passphrase, Source as Volume};

use super::args::DoctorArgs;
use super::finding::{Finding, first_line};
use crate::data::dataset::Split;
use crate::data::place::Place;
use crate::data::source::{Selection, Source as Pictures};
use crate::failure::Failure;
use crate::training::volume::hint;
use crate::trust::fetch::Keeper;
use crate::trust::passphrase::KeySource;

const ITEM: &str = "data";

pub(super) fn check(args: &DoctorArgs) -> Finding {
    let Some(path) = &args.data_volume else {
        return pictures(args, &Place::directory(&args.data));
    };
    let header = match Volume::new(path).read_header() {
        Ok(header) => header,
        Err(error) => return refused(path, &error),
    };
    match passphrase(args) {
        Err(failure) => Finding::failed(ITEM, first_line(&failure), "a key that can be read"),
        Ok(None) => Finding::warning(
            ITEM,
            format!("{}: header id {}, not opened", path.display(), header.id()),
            "--key-file FILE or --key-fd N, to see what is in it",
        ),
        Ok(Some(passphrase)) => match Place::volume(path, &passphrase) {
            Ok(place) => pictures(args, &place),
            Err(error) => refused(path, &error),
        },
    }
}

/// The passphrase, if it is to be had without spending one that a service counts.
fn passphrase(args: &DoctorArgs) -> Result<Option<Passphrase>, Failure> {
    let key = KeySource { file: args.key_file.clone(), descriptor: args.key_fd };
    match &args.secret_service {
        _ if key.file.is_some() || key.descriptor.is_some() => key.read().map(Some),
        Some(Keeper::Trustee(resource)) => match resource.fetch() {
            Ok(secret) => Ok(Some(Passphrase::from_bytes(&secret))),
            Err(error) => Err(Failure::new(format!("{resource}: {error}"))),
        },
        _ => Ok(None),
    }
}

fn refused(path: &Path, error: &luks::Error) -> Finding {
    let advice = hint(error).unwrap_or("hfl luks create --files makes a volume of a data set");
    Finding::failed(ITEM, format!("{}: {error}", path.display()), advice)
}

fn pictures(args: &DoctorArgs, place: &Place) -> Finding {
    let selection = Selection { split: Split::Train, shard: args.shard, hold_out: None };
    let source = match Pictures::select_in(place, selection) {
        Ok(source) => source,
        Err(error) => {
            let advice = "--data with CIFAR's binary files, train/CLASS/PICTURE or an .npz file";
            return Finding::failed(ITEM, error.to_string(), advice);
        }
    };
    let classes = source.classes();
    let missing = classes.iter().filter(|(_, count)| *count == 0).map(|(name, _)| &**name);
    let missing: Vec<&str> = missing.collect();
    let root = place.root().display();
    let found = format!("{root}: {} images, {}", source.len(), source.format());
    match missing.is_empty() {
        true => Finding::ok(ITEM, format!("{found} of all {} classes", classes.len())),
        false => Finding::warning(
            ITEM,
            format!("{found}, none of {}", missing.join(", ")),
            "is this the right part of the data?",
        ),
    }
}
