//! `hfl demo`: a whole job on one machine, as child processes on loopback, then an evaluation.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use kernels::Isa;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;

use crate::commands::eval;
use crate::data::dataset::Split;
use crate::data::source::Selection;
use crate::data::synthetic;
use crate::failure::{Doing, Failure};
use crate::job::Stem;
use crate::progress::{self, Training};
use crate::training::checkpoint::DATA_FILE;
use crate::training::store::{DIRECTORY, Place};
use crate::training::volume;
use crate::trust::passphrase::KeySource;
use protocol::hex;

/// What to demonstrate.
#[derive(Clone, Debug)]
pub struct Options {
    /// CIFAR-10 files, or `None` for drawn images.
    pub data: Option<PathBuf>,
    /// Where data and model go.
    pub directory: PathBuf,
    /// Number of workers.
    pub workers: u16,
    /// Passes over the data.
    pub epochs: Option<u32>,
    /// First layers of the network.
    pub stem: Stem,
    /// Threads to share among the workers.
    pub threads: usize,
}

/// Bytes of the demo's volume: two checkpoints, the old one until the new one is safe, and the best. It is sparse.
const VOLUME_LEN: u64 = 768 << 20;
/// Says that a directory is a demo's.
const MARKER: &str = ".hfl-demo";
/// Drawn images for training and for the test.
const DRAWN: [usize; 2] = [2000, 500];
/// How a job is run: what suits the data.
struct Course {
    epochs: u32,
    /// Images of a worker in a step.
    batch: u32,
    rate: &'static str,
}

/// For the drawn images: few of them, so small steps.
const DRAWN_COURSE: Course = Course { epochs: 6, batch: 32, rate: "0.01" };
/// For CIFAR-10: two epochs, and a rate for so few.
const CIFAR_COURSE: Course = Course { epochs: 2, batch: 128, rate: "0.03" };

/// A line of a child, or its end.
enum Heard {
    Line(usize, Value),
    Silence(usize),
}

/// What came of the training.
#[derive(Default)]
struct Outcome {
    losses: Vec<f64>,
    images: u64,
    bytes: [u64; 2],
    parameters: String,
    seconds: f64,
}

/// Trains, evaluates, prints a summary.
///
/// # Errors
/// When data cannot be written or read, or a role fails.
pub fn run(options: &Options) -> Result<(), Failure> {
    let place = seal(&options.directory)?;
    let (data, mut course) = match &options.data {
        Some(data) => (data.clone(), CIFAR_COURSE),
        None => (draw(&options.directory)?, DRAWN_COURSE),
    };
    course.epochs = options.epochs.unwrap_or(course.epochs);
    say(&format!(
        "ps0 and {} workers on loopback, simulated TDX, {} epochs over {}\n",
        options.workers,
        course.epochs,
        data.display()
    ));
    let outcome = train(options, &data, &place, &course)?;
    let evaluation = eval::run(&eval::Options {
        place: &place,
        best: false,
        mirrored: false,
        data: &data,
        selection: Selection { split: Split::Test, shard: None, hold_out: None },
        threads: options.threads,
        isa: Isa::detect(),
        predictions: None,
    })?;
    say(&format!("{evaluation}\n"));
    say(&summary(&outcome, evaluation.accuracy, &place));
    Ok(())
}

/// Makes the directory, or takes one that an earlier demo made: everything in it may be overwritten. Any other that
/// is not empty is somebody's.
fn claim(directory: &Path) -> Result<(), Failure> {
    fs::create_dir_all(directory).doing(directory.display())?;
    let marker = directory.join(MARKER);
    let mut entries = fs::read_dir(directory).doing(directory.display())?;
    if !marker.exists() && entries.next().is_some() {
        return Err(Failure::new(format!(
            "{}: not empty, and not a demo's: nothing in it is touched",
            directory.display()
        ))
        .hint("--dir with a new directory"));
    }
    fs::write(&marker, "What is in this directory is overwritten by the next hfl demo.\n")
        .doing(marker.display())
}

/// A new encrypted volume for the model, in the place of the last demo's, and a key file beside it.
fn seal(directory: &Path) -> Result<Place, Failure> {
    claim(directory)?;
    let [volume, key] = ["model.luks", "model.key"].map(|name| directory.join(name));
    let mut random = [0; 32];
    SystemRandom::new().fill(&mut random).map_err(|_| Failure::new("no random numbers"))?;
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&key);
    file.and_then(|mut file| file.write_all(hex(&random).as_bytes())).doing(key.display())?;
    let key = KeySource { file: Some(key), descriptor: None };
    let size = luks::Options::new(VOLUME_LEN);
    volume::create_volume(&volume, None, &size, &[key.read()?], true, true)
        .map_err(|error| volume::explained(&volume, &error))?;
    Ok(Place {
        model_dir: directory.join("worker0"),
        volume: Some(volume),
        create: None,
        key,
        min_step: 0,
    })
}

/// Writes the drawn images in CIFAR-10's format.
fn draw(directory: &Path) -> Result<PathBuf, Failure> {
    let data = directory.join("data");
    fs::create_dir_all(&data).doing(data.display())?;
    for (seed, (name, count)) in
        ["data_batch_1.bin", "test_batch.bin"].into_iter().zip(DRAWN).enumerate()
    {
        let path = data.join(name);
        fs::write(&path, synthetic::records(seed as u64, count)).doing(path.display())?;
    }
    Ok(data)
}

fn train(
    options: &Options,
    data: &Path,
    place: &Place,
    course: &Course,
) -> Result<Outcome, Failure> {
    let start = Instant::now();
    let program = std::env::current_exe().doing("own path")?;
    let port = free_port()?;
    let threads = (options.threads / usize::from(options.workers)).max(1);
    let mut family = Family::default();
    let (sender, heard) = channel();
    for role in
        std::iter::once("ps0".into()).chain((0..options.workers).map(|i| format!("worker{i}")))
    {
        let mut command = Command::new(&program);
        command
            .args(["--role", &role, "--ps-hosts", &format!("localhost:{port}")])
            .args(["--attestation", "sim", "--json", "--threads", &threads.to_string()])
            .args(["--with-parent", &std::process::id().to_string()])
            .arg("--model-dir")
            .arg(&place.model_dir);
        if let (true, Some(volume), Some(key)) = (role == "ps0", &place.volume, &place.key.file) {
            command.arg("--volume").arg(volume).arg("--key-file").arg(key);
            command
                .args(["--workers", &options.workers.to_string()])
                .args(["--epochs", &course.epochs.to_string()])
                .args(["--batch-size", &course.batch.to_string(), "--lr", course.rate])
                .args(["--stem", &options.stem.to_string()]);
        }
        if let Some(index) = role.strip_prefix("worker") {
            command.arg("--data").arg(data);
            command.args(["--shard", &format!("{index}/{}", options.workers)]);
        }
        family.start(role, command, sender.clone())?;
    }
    drop(sender);
    let mut outcome = listen(&mut family, &heard)?;
    outcome.seconds = start.elapsed().as_secs_f64();
    Ok(outcome)
}

/// Follows the children until all are done.
fn listen(family: &mut Family, heard: &Receiver<Heard>) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::default();
    let (mut shown, mut training) = (Instant::now(), Training::default());
    let draws = progress::is_in_front();
    for heard in heard {
        match heard {
            Heard::Silence(index) => family.check(index)?,
            // ps0 speaks for all of them.
            Heard::Line(0, line) => {
                outcome.take(&line);
                let step = line["step"].as_u64().zip(line["steps"].as_u64());
                let Some((step, steps)) = step.filter(|_| line["event"] == "step") else {
                    continue;
                };
                let loss = line["loss"].as_f64().unwrap_or(f64::NAN);
                let images = line["images"].as_u64().unwrap_or(0);
                let drawn = training.step(step, steps, loss, images).filter(|_| draws);
                if shown.elapsed() > Duration::from_secs(2) || step == 0 || step + 1 == steps {
                    shown = Instant::now();
                    drawn.iter().for_each(|_| progress::clear());
                    say(&format!("step {:>5} of {steps}   loss {loss:.4}", step + 1));
                }
                if let Some(line) = drawn {
                    progress::draw(&line);
                }
            }
            Heard::Line(..) => {}
        }
    }
    if draws {
        progress::clear();
    }
    Ok(outcome)
}

impl Outcome {
    fn take(&mut self, line: &Value) {
        match line["event"].as_str() {
            Some("step") => {
                self.losses.extend(line["loss"].as_f64());
                self.images += line["images"].as_u64().unwrap_or(0);
            }
            Some("parameters") => {
                self.parameters = line["sha256"].as_str().unwrap_or_default().into();
                self.bytes =
                    ["bytes_received", "bytes_sent"].map(|k| line[k].as_u64().unwrap_or(0));
            }
            _ => {}
        }
    }
}

fn summary(outcome: &Outcome, accuracy: f64, place: &Place) -> String {
    let first = outcome.losses.first().copied().unwrap_or(f64::NAN);
    let last = outcome.losses.last().copied().unwrap_or(f64::NAN);
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let shown = |path: &Option<PathBuf>| {
        path.as_ref().map_or_else(String::new, |p| p.display().to_string())
    };
    let (volume, key) = (shown(&place.volume), shown(&place.key.file));
    format!(
        "\nsummary\n\
         steps       {} in {:.0} s, {:.0} images/s with everything attested and encrypted\n\
         loss        {first:.4} -> {last:.4}\n\
         accuracy    {:.2} % of the test images\n\
         on the wire {:.0} MB gradients in, {:.0} MB parameters out\n\
         parameters  sha256:{}\n\
         model       {volume}, a LUKS2 volume; its key is {key}\n\
         to open it  hfl luks export {volume} --key-file {key} --files out\n\
         \x20           or, as root: cryptsetup open --key-file {key} {volume} model && mount /dev/mapper/model /mnt\n\
         in PyTorch  weights = safetensors.torch.load_file('out/{DIRECTORY}/{DATA_FILE}')\n\
         \x20           model = torchvision.models.resnet50(num_classes=10)\n\
         \x20           model.load_state_dict({{k: v for k, v in weights.items() if not k.startswith('momentum.')}})",
        outcome.losses.len(),
        outcome.seconds,
        outcome.images as f64 / outcome.seconds,
        100.0 * accuracy,
        megabytes(outcome.bytes[0]),
        megabytes(outcome.bytes[1]),
        outcome.parameters,
    )
}

/// The child processes; those that still run are ended with it.
#[derive(Default)]
struct Family {
    members: Vec<(String, Child)>,
}

impl Family {
    fn start(
        &mut self,
        role: String,
        mut command: Command,
        to: Sender<Heard>,
    ) -> Result<(), Failure> {
        let index = self.members.len();
        command.env("RUST_LOG", "error").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().doing(format!("start {role}"))?;
        let stdout = child.stdout.take().ok_or_else(|| Failure::new("no pipe to a child"))?;
        self.members.push((role, child));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(value) = serde_json::from_str(&line) {
                    // The demo may have given up; then nobody listens.
                    let _ = to.send(Heard::Line(index, value));
                }
            }
            let _ = to.send(Heard::Silence(index));
        });
        Ok(())
    }

    fn check(&mut self, index: usize) -> Result<(), Failure> {
        let (role, child) = &mut self.members[index];
        let status = child.wait().doing(format!("wait for {role}"))?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new(format!("{role} ended with {status}")))
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        for (_, child) in &mut self.members {
            // Already gone is as good as ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16, Failure> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).doing("find a free port")?;
    Ok(listener.local_addr().doing("find a free port")?.port())
}

fn say(text: &str) {
    let mut stdout = std::io::stdout();
    // Nobody reads: the training goes on.
    let _ = writeln!(stdout, "{text}");
    if !stdout.is_terminal() {
        let _ = stdout.flush();
    }
}
