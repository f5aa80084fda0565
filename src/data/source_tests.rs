//! Each kind of data on a disk, as a job gets it.

use std::fs;

use super::*;
use crate::data::batch::Batch;
use crate::data::feed::Feed;
use crate::data::resize::Cut;
use crate::data::sampler::Sampler;
use crate::data::synthetic;
use crate::job::Augment;

fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures").join(name)
}

/// A directory that goes away with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hfl-source-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("create");
        Self(path)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("create");
        fs::write(path, bytes).expect("write");
    }

    /// A recorded picture under a name of its own.
    fn copy(&self, from: &str, to: &str) {
        self.put(to, &fs::read(recorded(from)).expect("recorded"));
    }

    fn open(&self, split: Split) -> Result<Source, DataError> {
        Source::open(&self.0, split, None)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // A left-over in the temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn names(names: &[&str]) -> ClassNames {
    ClassNames::new(names.iter().map(|name| (*name).to_owned()).collect()).expect("names")
}

fn load(source: Source, side: usize, classes: &ClassNames) -> Result<Dataset, DataError> {
    let shape = Shape { side, classes: classes.len(), ..Shape::CIFAR };
    source.shaped(shape, Form::Square(Cut::plain(side)), classes, Normalisation::Cifar, LOADING)
}

const LOADING: Loading = Loading { threads: 2, room: u64::MAX };

fn labels(set: &Dataset) -> Vec<u8> {
    (0..set.len()).map(|index| set.label(index)).collect()
}

#[test]
fn cifar_10_is_what_it_was_byte_for_byte() {
    let dir = Dir::new("ten");
    let records = synthetic::records(1, 12);
    dir.put("data_batch_1.bin", &records);
    let source = dir.open(Split::Train).expect("CIFAR-10");
    assert_eq!((source.len(), source.format()), (12, "CIFAR-10 records"));
    let set = load(source, 32, &ClassNames::default()).expect("its own classes");
    assert_eq!(set.records(), records);
    let same = cifar::from_records(records.clone()).expect("records");
    assert_eq!(set.digest(), same.digest());
    let shard = Source::open(&dir.0, Split::Train, Some(Shard { index: 1, of: 3 })).expect("shard");
    let shard = load(shard, 32, &ClassNames::default()).expect("its own classes");
    let own = records.chunks_exact(3073).skip(1).step_by(3);
    assert_eq!(shard.records(), own.collect::<Vec<_>>().concat());
    let none = Source::open(&dir.0, Split::Train, Some(Shard { index: 12, of: 13 }));
    assert!(none.expect_err("no record").to_string().contains("shard 12/13"));
    let larger = load(dir.open(Split::Train).expect("again"), 64, &ClassNames::default());
    assert_eq!(larger.expect("enlarged").records().len(), 12 * (1 + 3 * 64 * 64));
}

#[test]
fn cifar_100_has_its_fine_labels() {
    let dir = Dir::new("hundred");
    let record = |fine: u8| [vec![19, fine], vec![fine; 3072]].concat();
    dir.put("train.bin", &[record(11), record(99)].concat());
    let set = load(dir.open(Split::Train).expect("CIFAR-100"), 32, &ClassNames::cifar100());
    let set = set.expect("its own classes");
    assert_eq!((labels(&set), set.records()[1]), (vec![11, 99], 11));
    dir.put("train.bin", &record(100));
    let why = dir.open(Split::Train).expect_err("no class").to_string();
    assert!(why.ends_with("label 100 at offset 1, expected 0 to 99"), "{why}");
    dir.put("train.bin", &record(1)[..3000]);
    assert!(dir.open(Split::Train).expect_err("cut off").to_string().contains("3000 of 3074"));
}

#[test]
fn a_folder_of_class_folders_has_the_jobs_numbers() {
    let dir = Dir::new("folder");
    for (from, to) in [
        ("colour.png", "train/dog/b.png"),
        ("grey.jpg", "train/dog/a.JPG"),
        ("turned.jpg", "train/cat/x"),
        ("grey.png", "test/dog/t.png"),
    ] {
        dir.copy(from, to);
    }
    dir.put("train/dog/.hidden", b"passed over");
    let open = |split| dir.open(split).expect("a folder");
    let source = open(Split::Train);
    assert_eq!(source.classes(), [("cat".to_owned(), 1), ("dog".to_owned(), 2)]);
    let ends: Vec<bool> = source
        .titles()
        .iter()
        .zip(["cat/x", "dog/a.JPG", "dog/b.png"])
        .map(|(title, end)| title.ends_with(end))
        .collect();
    assert_eq!(ends, [true; 3]);
    // The job's order, and a class that this worker lacks.
    let job = names(&["zebra", "dog", "cat"]);
    let set = load(source, 32, &job).expect("the job's classes");
    assert_eq!(labels(&set), [2, 1, 1]);
    let alone = |threads| {
        let shape = Shape { classes: 3, ..Shape::CIFAR };
        let form = Form::Square(Cut::plain(shape.side));
        open(Split::Train)
            .shaped(shape, form, &job, Normalisation::Cifar, Loading { threads, ..LOADING })
            .expect("decoded")
    };
    assert!(alone(1).records() == set.records() && alone(9).records() == set.records());
    assert_eq!(labels(&load(open(Split::Test), 32, &job).expect("the test's")), [1]);
    let why = load(open(Split::Train), 32, &names(&["dog", "bird"])).expect_err("another job");
    let why = why.to_string();
    assert!(why.ends_with("classes that the job has not: cat; the job's are dog, bird"), "{why}");
}

#[test]
fn what_does_not_belong_into_a_folder_is_named() {
    let job = names(&["a"]);
    let check = |what: &str, file: &str, bytes: &[u8], part: &str| {
        let dir = Dir::new(what);
        dir.copy("colour.png", "train/a/0.png");
        dir.put(file, bytes);
        let outcome = dir.open(Split::Train).and_then(|source| load(source, 32, &job));
        let why = outcome.map(|_| ()).expect_err(what).to_string();
        let name = dir.0.join(file).display().to_string();
        assert!(why.contains(part), "{what}: {why}");
        assert!(what == "nested" || why.starts_with(&name), "{what}: {why}");
    };
    check("empty", "train/a/1.png", b"", "empty");
    check("text", "train/a/notes.txt", b"notes", "expected PNG or JPEG");
    check("beside", "train/labels.csv", b"a,b", "beside the class folders");
    check("nested", "train/a/b/1.png", b"x", "a folder inside a class folder");
    let dir = Dir::new("socket");
    dir.copy("colour.png", "train/a/0.png");
    let socket = std::os::unix::net::UnixListener::bind(dir.0.join("train/a/1.png"));
    let why = dir.open(Split::Train).expect_err("a socket").to_string();
    assert!(socket.is_ok() && why.contains("1.png: no plain file"), "{why}");
    let dir = Dir::new("lacks-test");
    dir.copy("colour.png", "train/a/0.png");
    assert!(dir.open(Split::Test).expect_err("no test/").to_string().contains("/test"));
    fs::create_dir_all(dir.0.join("test/a")).expect("create");
    assert!(dir.open(Split::Test).expect_err("none").to_string().contains("no CLASS/PICTURE"));
    let bare = Dir::new("bare");
    let why = bare.open(Split::Train).expect_err("nothing there").to_string();
    assert!(why.contains("data_batch_*.bin") && why.contains("train/CLASS/"), "{why}");
    let why =
        Source::open(&bare.0.join("gone"), Split::Train, None).expect_err("nothing").to_string();
    assert!(why.contains("gone"), "{why}");
}

#[test]
fn arrays_of_numpy_are_read_stored_and_deflated() {
    let open = |name: &str, split| Source::open(&recorded(name), split, None);
    let job = names(&["x", "y", "z"]);
    for name in ["grey.npz", "deflated.npz"] {
        let source = open(name, Split::Train).expect(name);
        assert_eq!((source.len(), source.classes().len()), (6, 3));
        let set = load(source, 32, &job).expect(name);
        assert_eq!(labels(&set), [0, 1, 2, 0, 1, 2]);
        let planes = &set.records()[1..3073];
        assert!(planes[..1024] == planes[1024..2048] && planes[..1024] == planes[2048..]);
        assert_eq!(open(name, Split::Test).expect(name).len(), 3);
    }
    let colour = load(open("colour.npz", Split::Train).expect("colour"), 32, &job).expect("colour");
    // The last pixel of the first image: 783 of 0, 1, 2, ... as a byte, its half and its quarter.
    let at = |channel: usize| colour.records()[1 + channel * 1024 + 1023];
    assert_eq!([at(0), at(1), at(2)], [15, 7, 3]);
    let few = load(open("grey.npz", Split::Train).expect("grey"), 32, &names(&["x", "y"]));
    let why = few.map(|_| ()).expect_err("three classes").to_string();
    assert!(why.contains("classes that the job has not: 2"), "{why}");
}

#[test]
fn arrays_that_do_not_fit_are_refused_by_reason() {
    for (name, part) in [
        ("fortran.npz", "Fortran"),
        ("floats.npz", "type <f4"),
        ("negative.npz", "label 1 is not a number from 0 to 255"),
        ("many.npz", "labels of shape [2, 2] for 2 images"),
    ] {
        let why = Source::open(&recorded(name), Split::Train, None).expect_err(name).to_string();
        assert!(why.contains(part), "{name}: {why}");
    }
    let why = Source::open(&recorded("colour.npz"), Split::Test, None).expect_err("no test");
    assert!(why.to_string().contains("no array test_images"), "{why}");
    let whole = fs::read(recorded("deflated.npz")).expect("recorded");
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x11;
        npz::fuzz(&damaged);
        npz::fuzz(&whole[..at]);
    }
    // A length that no memory has.
    let mut giant = whole.clone();
    let entry = giant.windows(4).position(|four| four == b"PK\x01\x02").expect("an entry");
    giant[entry + 24..entry + 28].copy_from_slice(&u32::MAX.to_le_bytes());
    let why = npz::parse_bytes(Path::new("giant.npz"), &giant, Split::Train).expect_err("refused");
    assert!(why.to_string().starts_with("giant.npz: "), "{why}");
}

#[test]
fn pictures_that_are_not_parted_are_parted_by_their_content() {
    let dir = Dir::new("hold-out");
    let kinds = ["colour.jpg", "grey.jpg", "grey.png", "turned.png", "deep.png", "palette.png"];
    for (number, kind) in kinds.iter().enumerate() {
        dir.copy(kind, &format!("{}/{number}.png", ["cat", "dog"][number % 2]));
    }
    let select = |split| {
        let hold_out = Some("0.5".parse().expect("a part"));
        Source::select(&dir.0, Selection { split, shard: None, hold_out })
    };
    let titles = |split| select(split).map_or(Vec::new(), |source| source.titles());
    let (learned, tested) = (titles(Split::Train), titles(Split::Test));
    assert_eq!(learned.len() + tested.len(), kinds.len());
    assert!(!learned.is_empty() && !tested.is_empty(), "{learned:?}, {tested:?}");
    assert!(learned.iter().all(|title| !tested.contains(title)));
    // Under other names and in another class each stays on its side.
    fs::rename(dir.0.join("dog"), dir.0.join("wolf")).expect("rename");
    assert_eq!(titles(Split::Test).len(), tested.len());
    // Both sides know all classes, also those of which they have no picture.
    assert_eq!(select(Split::Train).expect("a folder").classes().len(), 2);
    let without = Source::open(&dir.0, Split::Train, None).expect_err("not parted").to_string();
    assert!(without.contains("--hold-out"), "{without}");
    fs::create_dir_all(dir.0.join("train")).expect("create");
    let parted = select(Split::Train).expect_err("parted already").to_string();
    assert!(parted.contains("--hold-out") && parted.contains("apart"), "{parted}");
}

/// A PNG that claims to be so large.
fn giant() -> Vec<u8> {
    let mut bytes = fs::read(recorded("colour.png")).expect("recorded");
    bytes[16..24].copy_from_slice(&[0, 1, 0x86, 0xa0].repeat(2));
    let sum = crc32fast::hash(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn of_twenty_odd_pictures_each_is_read_or_named_and_the_broken_ones_are_left_out_on_request() {
    let dir = Dir::new("twenty");
    let whole = |name: &str| fs::read(recorded(name)).expect("recorded");
    let cut = |name: &str, by: usize| whole(name)[..whole(name).len() - by].to_vec();
    let mut damaged = whole("colour.png");
    let at = damaged.len() - 20;
    damaged[at] ^= 1;
    let odd: [(&str, Vec<u8>, Option<&str>); 20] = [
        ("00-empty", Vec::new(), Some("empty")),
        ("01-zeros", vec![0; 4096], Some("unknown format")),
        ("02-text", b"hello".to_vec(), Some("unknown format")),
        ("03-svg", b"<svg/>".to_vec(), Some("markup")),
        ("04-pdf", b"%PDF-1.7".to_vec(), Some("a PDF")),
        ("05-gif", whole("animated.gif"), Some("a GIF")),
        ("06-webp", whole("colour.webp"), Some("a WebP")),
        ("07-animated", whole("animated.png"), Some("an animation of 3 frames")),
        ("08-cmyk", whole("cmyk.jpg"), Some("CMYK")),
        ("09-giant", giant(), Some("100000 x 100000 pixels")),
        ("10-cut", cut("colour.jpg", 2), Some("truncated")),
        ("11-half", cut("progressive.jpg", 200), Some("")),
        ("12-cut-png", cut("colour.png", 12), Some("")),
        ("13-damaged", damaged, Some("no valid PNG")),
        ("14-only-a-head", whole("colour.png")[..8].to_vec(), Some("")),
        ("15-16-bit", whole("deep.png"), None),
        ("16-rotated", whole("turned.jpg"), None),
        ("17-palette", whole("palette.png"), None),
        ("18-alpha", whole("alpha.png"), None),
        ("19-grey", whole("grey.jpg"), None),
    ];
    let job = names(&["a"]);
    for (name, bytes, why) in &odd {
        let file = format!("train/a/{name}");
        dir.put(&file, bytes);
        let alone = Dir::new(&format!("alone-{name}"));
        alone.put(&file, bytes);
        let outcome = alone.open(Split::Train).and_then(|source| load(source, 32, &job));
        match why {
            None => assert_eq!(outcome.expect(name).len(), 1),
            Some(part) => {
                let why = outcome.map(|_| ()).expect_err(name).to_string();
                assert!(why.contains(name) && why.contains(part), "{why}");
                let source = alone.open(Split::Train).expect("a folder").skipping_broken(true);
                let none = load(source, 32, &job).map(|_| ()).expect_err(name).to_string();
                assert!(none.contains("no whole picture"), "{none}");
            }
        }
    }
    let first = load(dir.open(Split::Train).expect("a folder"), 32, &job).map(|_| ());
    assert!(first.expect_err("broken").to_string().contains("00-empty"));
    let source = dir.open(Split::Train).expect("a folder").skipping_broken(true);
    let kept = load(source, 32, &job).expect("those that are whole");
    assert_eq!(kept.len(), 5);
    let rotated = fs::read(recorded("turned.jpg")).expect("recorded");
    let alone = Dir::new("rotated");
    alone.put("train/a/0", &rotated);
    let alone = load(alone.open(Split::Train).expect("a folder"), 32, &job).expect("whole");
    let len = kept.records().len() / 5;
    assert!(kept.records()[len..2 * len] == alone.records(), "in the order of the files");
}

/// Loads the pictures as a job learns from them, in so much memory.
fn learned(source: Source, job: &Job, room: u64) -> Dataset {
    source.load_to_learn(job, Loading { threads: 2, room }).expect("pictures")
}

/// The first batches of two epochs.
fn batches(set: &Dataset, job: &Job) -> Vec<Vec<f32>> {
    let mut feed = Feed::new(set.clone(), Sampler::of(job, 0));
    let mut batch = Batch::default();
    let steps = 2 * feed.sampler().batches(set.len());
    // Once out of turn, as after a restart of the server.
    let order = (0..steps).chain([1, 0]);
    order
        .map(|step| {
            feed.fill(step, steps, &mut batch).expect("as it was");
            batch.images.clone()
        })
        .collect()
}

#[test]
fn what_does_not_fit_in_memory_is_read_again_to_the_same_bytes() {
    let ten = Dir::new("away-ten");
    ten.put("data_batch_1.bin", &synthetic::records(1, 12));
    let arrays = Dir::new("away-arrays");
    arrays.copy("colour.npz", "colour.npz");
    let folder = Dir::new("away-folder");
    for (number, kind) in ["colour.jpg", "grey.png", "turned.jpg", "deep.png"].iter().enumerate() {
        folder.copy(kind, &format!("train/{}/{number}", ["cat", "dog"][number % 2]));
    }
    folder.put("train/dog/9-broken", b"GIF8");
    let sides = [(32, Augment::Standard), (64, Augment::Resized), (64, Augment::Parts)];
    for dir in [&ten, &folder, &arrays] {
        let open = || dir.open(Split::Train).expect("data").skipping_broken(true);
        let classes: Vec<String> = open().classes().into_iter().map(|(name, _)| name).collect();
        let shape = Shape { classes: classes.len(), ..Shape::CIFAR };
        let classes = ClassNames::new(classes).expect("names");
        for (side, augment) in sides {
            let (shape, classes) = (Shape { side, ..shape }, classes.clone());
            let job = Job { shape, classes, augment, batch_size: 3, ..Job::default() };
            let [here, away] = [u64::MAX, 0].map(|room| learned(open(), &job, room));
            assert!(!here.is_away() && away.is_away());
            assert_eq!(here.digest(), away.digest(), "{side}, {augment}");
            assert_eq!(here.class_counts(), away.class_counts());
            assert!(batches(&here, &job) == batches(&away, &job), "{side}, {augment}");
            // Nearly all of them is not all.
            let most = here.memory_len();
            assert_eq!((most, away.memory_len()), (here.records().len() as u64, 0));
            assert!(learned(open(), &job, most - 1).is_away());
            assert!(!learned(open(), &job, most).is_away());
        }
    }
}

#[test]
fn a_picture_that_changed_under_way_is_refused_by_name_and_taken_again_as_it_was() {
    let dir = Dir::new("changed");
    for (number, kind) in ["colour.jpg", "turned.jpg", "colour.png"].iter().enumerate() {
        dir.copy(kind, &format!("train/a/{number}"));
    }
    let (classes, shape) = (names(&["a"]), Shape { side: 64, classes: 1, ..Shape::CIFAR });
    for augment in [Augment::Parts, Augment::None] {
        let job = Job { shape, classes: classes.clone(), augment, ..Job::default() };
        let set = learned(dir.open(Split::Train).expect("a folder"), &job, 0);
        let mut batch = Batch::default();
        let mut fill =
            || Sampler::of(&job, 0).fill(&set, 0, &mut batch).map(|()| batch.images.clone());
        let was = fill().expect("as it was");
        for (bytes, part) in [
            (fs::read(recorded("grey.png")).expect("recorded"), "another picture"),
            (b"hello".to_vec(), "expected PNG or JPEG"),
        ] {
            dir.put("train/a/1", &bytes);
            let why = fill().expect_err("changed").to_string();
            assert!(why.contains("train/a/1: ") && why.contains(part), "{why}");
        }
        dir.copy("turned.jpg", "train/a/1");
        assert!(fill().expect("as it was") == was);
    }
}

/// A volume with what is in a directory, as `hfl luks create --files` makes it.
fn volume(dir: &Dir) -> PathBuf {
    let path = dir.0.with_extension("luks");
    let key = luks::Passphrase::from_bytes(b"key");
    let cost = luks::KdfCost::Pbkdf2 { hash: luks::Hash::Sha256, iterations: 1000 };
    let options = luks::Options { cost, integrity: true, ..luks::Options::new(28 << 20) };
    let made = luks::create(&path, None, &options, &[key], true).expect("create");
    let mut inside = luks::ext4::FileSystem::format(made, "data", 1).expect("format");
    fill(&mut inside, &dir.0, "");
    inside.close().expect("close");
    path
}

fn fill(inside: &mut luks::ext4::FileSystem<luks::Volume>, from: &Path, to: &str) {
    for entry in fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
        let path = format!("{to}/{}", entry.file_name().to_str().expect("UTF-8"));
        if entry.path().is_dir() {
            inside.make_directory(&path, 1).expect("room");
            fill(inside, &entry.path(), &path);
            continue;
        }
        let mut file = luks::ext4::NewFile::default();
        inside.append(&mut file, &fs::read(entry.path()).expect("read")).expect("room");
        inside.commit(vec![(&path, file)], 1).expect("commit");
    }
}

#[test]
fn every_kind_of_data_is_the_same_from_a_volume() {
    let ten = Dir::new("volume-ten");
    ten.put("data_batch_1.bin", &synthetic::records(1, 12));
    ten.put("test_batch.bin", &synthetic::records(2, 5));
    let parted = Dir::new("volume-parted");
    let whole = Dir::new("volume-whole");
    for (number, picture) in ["colour.jpg", "grey.png", "turned.jpg"].into_iter().enumerate() {
        for class in ["cat", "dog"] {
            parted.copy(picture, &format!("train/{class}/{number}-{picture}"));
            parted.copy(picture, &format!("test/{class}/{number}-{picture}"));
            whole.copy(picture, &format!("{class}/{number}-{picture}"));
        }
    }
    let arrays = Dir::new("volume-arrays");
    arrays.copy("colour.npz", "colour.npz");
    let held = Some("0.4".parse().expect("a part"));
    for (dir, hold_out) in [(&ten, None), (&parted, None), (&whole, held), (&arrays, None)] {
        let path = volume(dir);
        let place = Place::volume(&path, &luks::Passphrase::from_bytes(b"key")).expect("opens");
        for split in [Split::Train, Split::Test] {
            let selection = Selection { split, shard: None, hold_out };
            // The volume's are read as they are needed, too.
            let here_and_there = [(Place::directory(&dir.0), u64::MAX), (place.clone(), 0)];
            let [here, there] = here_and_there.map(|(place, room)| {
                let source = Source::select_if_any(&place, selection).expect("data")?;
                let classes = source.classes().into_iter().map(|(name, _)| name).collect();
                let classes = ClassNames::new(classes).expect("names");
                let shape = Shape { classes: classes.len(), ..Shape::CIFAR };
                let job = Job { shape, classes, batch_size: 2, ..Job::default() };
                let (format, set) = (source.format(), learned(source, &job, room));
                Some((format, set.digest(), batches(&set, &job)))
            });
            assert!(here == there, "{}", path.display());
        }
        // Names say where, and nothing is there but the data.
        let listed = place.list(place.root()).expect("the root");
        assert!(listed.iter().all(|path| path.starts_with(place.root())), "{listed:?}");
        assert!(!listed.iter().any(|path| path.ends_with("lost+found")), "{listed:?}");
        let gone = place.read(&place.root().join("no/such"), 9).expect_err("nothing").to_string();
        assert!(gone.contains(".luks:/no/such"), "{gone}");
        fs::remove_file(path).expect("remove");
    }
}

#[test]
fn a_pipe_in_a_pictures_place_is_refused_and_not_waited_for() {
    let dir = Dir::new("pipe");
    let pipe = dir.0.join("0.png");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).expect("a pipe");
    let place = Place::directory(&dir.0);
    let read = place.read(&pipe, 100).expect_err("no file").to_string();
    let part = place.read_part(&pipe, 0, &mut [0]).expect_err("no file").to_string();
    assert!(read.contains("0.png") && read.contains("not a regular file"), "{read}");
    assert_eq!(read, part);
}
