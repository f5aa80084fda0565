//! `hfl replay`: rounds of a job computed again and compared with what its log and its model say.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kernels::{Isa, Pool};
use protocol::hex;

use crate::data::dataset::{Dataset, Shard, Split};
use crate::data::hold_out::HoldOut;
use crate::data::loading::Loading;
use crate::data::source::{Selection, Source};
use crate::failure::{Doing, Failure};
use crate::job::state::State;
use crate::job::{Job, Wire};
use crate::model::network::Network;
use crate::model::params;
use crate::training::checkpoint::{self, BEST_FILE, Checkpoint, DATA_FILE};
use crate::training::initial;
use crate::training::replay::{Difference, Replay};
use crate::training::room;
use crate::training::rounds::{self, Logged, RoundLog};
use crate::training::store::{Place, Store};

/// Which rounds, and what they were computed from.
pub struct Asked {
    /// Step to begin with.
    pub from: u64,
    /// Step to end with; that of the model otherwise.
    pub to: Option<u64>,
    /// A checkpoint of step `from`.
    pub checkpoint: Option<PathBuf>,
    /// What the job was begun with, if that was a file.
    pub init: Option<PathBuf>,
    /// Data of each worker.
    pub data: Vec<WorkerData>,
    /// What parts pictures that lie in `CLASS/*`.
    pub hold_out: Option<HoldOut>,
    /// Leave broken pictures out.
    pub skip_broken: bool,
}

/// Where a worker's data is: `DIR`, or `DIR@I/N` for a part of it.
#[derive(Clone, Debug)]
pub struct WorkerData {
    path: PathBuf,
    shard: Option<Shard>,
}

impl FromStr for WorkerData {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A path may have an @ of its own.
        let part = text.rsplit_once('@').filter(|(_, part)| part.contains('/'));
        let part = part.and_then(|(path, part)| Some((path, part.parse().ok()?)));
        Ok(match part {
            None => Self { path: text.into(), shard: None },
            Some((path, shard)) => Self { path: path.into(), shard: Some(shard) },
        })
    }
}

/// Rounds that came to the same.
#[derive(Debug)]
pub struct Replayed {
    span: [u64; 2],
    rounds: u64,
    hash: [u8; 32],
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [from, to] = self.span;
        writeln!(f, "steps {from} to {to}: the same in all {} rounds", self.rounds)?;
        write!(f, "parameters: sha256:{}", hex(&self.hash))
    }
}

/// Computes the rounds again, on these threads, and compares.
///
/// # Errors
/// When something that they depend on is not there or another, or a round comes to something else.
pub fn run(place: &Place, asked: &Asked, threads: usize, isa: Isa) -> Result<Replayed, Failure> {
    let (log, saved, start) = place.read(|store| read(store, asked))?;
    let Checkpoint { job, state: last } = saved;
    let to = asked.to.unwrap_or(last.step);
    let span = rounds_between(&log, asked.from, to)?;
    check_comparable(&span, &job, to, last.step)?;
    let network = Network::of(&job).doing("network")?;
    let data = datasets(asked, &job, &last, &network, threads)?;
    let state = match start {
        Some(state) => state,
        None => first(asked, &job, &network, &last)?,
    };
    // Who came later, and how long the job is, was known when the first of these rounds closed, or changes nothing.
    let state = State { members: last.members.clone(), steps: last.steps, ..state };
    let mut replay = Replay::new(&job, network, state, data, Pool::new(threads), isa)?;
    for logged in &span {
        if let Some(difference) = replay.advance(logged).map_err(Failure::new)? {
            return Err(differs(logged, &difference));
        }
        log::info!("step {}: the same", logged.step + logged.steps - 1);
    }
    let hash = params::hash(&replay.state().params);
    if to == last.step && hash != params::hash(&last.params) {
        return Err(Failure::new(format!(
            "step {to}: the model's parameters are others: sha256:{}, and these rounds give sha256:{}",
            hex(&params::hash(&last.params)),
            hex(&hash)
        )));
    }
    if to == last.step && replay.state().average != last.average {
        return Err(Failure::new(format!("step {to}: the model's averaged weights are others")));
    }
    Ok(Replayed { span: [asked.from, to], rounds: span.len() as u64, hash })
}

/// The log, the last checkpoint, and the state to begin with, unless that is the job's first.
fn read(store: &Store, asked: &Asked) -> Result<(RoundLog, Checkpoint, Option<State>), Failure> {
    let name = store.name_of(rounds::FILE);
    let bytes = store.read(rounds::FILE).doing(&name)?;
    let missing = |name: &str| {
        Failure::new(format!("{name}: no such file")).hint("a model that ps0 has saved")
    };
    let log = RoundLog::parse(&bytes.ok_or_else(|| missing(&name))?).doing(&name)?;
    let name = store.name_of(DATA_FILE);
    let saved = checkpoint::load(store, DATA_FILE).doing(&name)?;
    let (_, saved) = saved.ok_or_else(|| missing(&name))?;
    let start = match &asked.checkpoint {
        Some(path) => Some(of_file(path, asked.from, &saved.job)?),
        None if asked.from == 0 => None,
        None if saved.state.step == asked.from => Some(saved.state.clone()),
        None => {
            let best = checkpoint::load(store, BEST_FILE).doing(store.name_of(BEST_FILE))?;
            let best = best.map(|(_, best)| best.state).filter(|best| best.step == asked.from);
            Some(best.ok_or_else(|| {
                Failure::new(format!(
                    "--from {}: no checkpoint of that step (the last is of step {})",
                    asked.from, saved.state.step
                ))
                .hint("--checkpoint with a copy of model.ckpt-data, or --from 0")
            })?)
        }
    };
    Ok((log, saved, start))
}

/// A checkpoint that lies anywhere.
fn of_file(path: &Path, step: u64, job: &Job) -> Result<State, Failure> {
    let name = path.display();
    let directory = path.parent().unwrap_or(Path::new("."));
    let file = path.file_name().and_then(|name| name.to_str());
    let file = file.ok_or_else(|| Failure::usage(format!("--checkpoint {name}: no file")))?;
    let found = checkpoint::load(&Store::Directory(directory.into()), file).doing(&name)?;
    let (_, found) = found.ok_or_else(|| Failure::new(format!("{name}: no such file")))?;
    if found.job.digest() != job.digest() {
        return Err(Failure::new(format!(
            "{name}: of job {}, the model is of {}",
            hex(&found.job.digest()),
            hex(&job.digest())
        )));
    }
    if found.state.step != step {
        let of = found.state.step;
        return Err(Failure::usage(format!("{name}: of step {of}, not of --from {step}")));
    }
    Ok(found.state)
}

/// The rounds of the log from one step to another.
fn rounds_between(log: &RoundLog, from: u64, to: u64) -> Result<Vec<Logged<'_>>, Failure> {
    let all = || log.rounds();
    let begins = from == 0 || all().any(|round| round.step == from);
    let ends = all().any(|round| round.end() == to);
    if from < to && begins && ends {
        return Ok(all().filter(|round| (from..to).contains(&round.step)).collect());
    }
    let last = all().last().map_or(0, |round| round.end());
    let near = |step: u64| all().map(|round| round.end()).take_while(|end| *end <= step).last();
    Err(Failure::usage(format!(
        "--from {from} --to {to}: rounds of this job begin and end with step {}, {} and so on, up to {last}",
        near(from).unwrap_or(0),
        all().map(|round| round.end()).find(|end| *end > from).unwrap_or(last),
    )))
}

/// Whether there is something to compare with, and nothing is missing that no checkpoint has.
fn check_comparable(span: &[Logged], job: &Job, to: u64, last: u64) -> Result<(), Failure> {
    if to != last && span.iter().any(|round| round.check.is_none()) {
        return Err(Failure::usage(format!(
            "--to {to}: this log has no checksums, and the model to compare with is of step {last}"
        )));
    }
    let carries = |round: &Logged| round.workers.iter().any(|part| !part.fresh);
    if job.wire == Wire::Int8 && span.first().is_some_and(carries) {
        return Err(Failure::usage(
            "--from: with --wire int8 workers had carried something over to this step, which no checkpoint has",
        )
        .hint("--from 0, or a step after which all workers were started again"));
    }
    Ok(())
}

/// Everybody's data, if it is that of the job.
fn datasets(
    asked: &Asked,
    job: &Job,
    last: &State,
    network: &Network,
    threads: usize,
) -> Result<Vec<Dataset>, Failure> {
    let (all, given) = (usize::from(job.workers), asked.data.len());
    if given != all {
        return Err(Failure::usage(format!("data of {given} workers, the job had {all}"))
            .hint("one DIR or DIR@I/N for each, in the order of their numbers"));
    }
    let mut sets = Vec::with_capacity(all);
    for (worker, WorkerData { path, shard }) in asked.data.iter().enumerate() {
        let (split, hold_out) = (Split::Train, asked.hold_out);
        let source = Source::select(path, Selection { split, shard: *shard, hold_out });
        let source = source.map_err(Failure::new)?.skipping_broken(asked.skip_broken);
        // Each leaves room for those that follow.
        let room = room::for_pictures(job, network, usize::MAX) / (all - worker) as u64;
        let loading = Loading { threads, room };
        let set = source.load_to_learn(job, loading).map_err(Failure::new)?;
        let known = last.members[worker].as_ref().and_then(|member| member.data);
        let found = set.digest();
        if known.is_some_and(|known| known != found) {
            return Err(Failure::new(format!(
                "worker{worker}: {} is not what it trained on: digest {}..., and here {}...",
                path.display(),
                hex(&known.unwrap_or_default()[..6]),
                hex(&found[..6])
            ))
            .hint("its data as it was, and its part of it (DIR@I/N)"));
        }
        sets.push(set);
    }
    Ok(sets)
}

/// The training before its first step.
fn first(asked: &Asked, job: &Job, network: &Network, last: &State) -> Result<State, Failure> {
    let mut begun = Job { init: None, ..job.clone() };
    let params = match &asked.init {
        None => initial::by_seed(job, network),
        Some(path) => initial::of_file(&mut begun, network, path)?,
    };
    if begun.init != job.init {
        let of = job.init.map_or("a seed".into(), |hash| format!("sha256:{}", hex(&hash)));
        return Err(Failure::usage(format!("--init: the job was begun with {of}")));
    }
    let state = State::new(params, network.layout.trained, job.workers);
    Ok(State { steps: last.steps, ..state.averaging(job.recipe.averages()) })
}

/// What to say of the first round that comes to something else.
fn differs(logged: &Logged, difference: &Difference) -> Failure {
    let (first, last) = (logged.step, logged.end() - 1);
    let what = match difference {
        Difference::Samples { worker, logged, found } => {
            format!("worker{worker} is logged with {logged} samples, its data gives {found}")
        }
        Difference::Parameters => "the parameters after it are others than those logged".into(),
        Difference::NotFinite => "what comes of it is not finite".into(),
    };
    let steps =
        if first == last { format!("step {first}") } else { format!("steps {first} to {last}") };
    Failure::new(format!("the first round that differs is that of {steps}: {what}"))
        .hint("the same hfl and the workers' --isa; if they are, log, data or model were changed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_a_worker_is_a_directory_or_a_part_of_one() {
        for (text, path, part) in
            [("a/b", "a/b", None), ("a@1/2", "a", Some((1, 2))), ("a@b/c", "a@b/c", None)]
        {
            let data: WorkerData = text.parse().expect("any text is one");
            assert_eq!(data.path, Path::new(path));
            assert_eq!(data.shard.map(|shard| (shard.index, shard.of)), part, "{text}");
        }
    }
}
