//! From a role's flags to what it runs with: the job, and numbers that no job can have.

use std::path::Path;
use std::time::Duration;

use argh::FromArgs;
use protocol::{Role, unhex};
use serde_json::Value;

use super::args::Args;
use super::choice::{NormKind, ReportKind, ScheduleKind};
use super::local::THREADS_MAX;
use crate::failure::{Doing, Failure};
use crate::job::bounds::Bounds;
use crate::job::evaluation::Evaluation;
use crate::job::norm::{FROZEN_AFTER, Norm};
use crate::job::recipe::{Flip, Recipe};
use crate::job::schedule::Schedule;
use crate::job::shape::{CHANNELS, SIDE_MAX, SIDE_STEP, Shape};
use crate::job::{
    Augment, BATCH_MAX, DEADLINE_MAX, Job, LOCAL_STEPS_MAX, Outer, Quorum, Stem, WORKERS_MAX,
};
use crate::termination;
use crate::training::roles;
use crate::training::store::Place;
use crate::trust::fetch::Service;
use crate::trust::passphrase::KeySource;
use crate::trust::policy::read;

/// What a role runs with.
pub(super) fn options(args: Args, role: Role) -> Result<roles::Options, Failure> {
    let role = numbered(role, args.first_worker)?;
    check_numbers(&args)?;
    let named = args.key_file.is_some() || args.key_fd.is_some();
    let has_volume = args.volume.is_some() || args.data_volume.is_some();
    if args.secret_service.is_some() && (named || !has_volume) {
        return Err(Failure::usage("--secret-service gives the passphrase of --volume")
            .hint("--volume or --data-volume, and neither --key-file nor --key-fd"));
    }
    if args.data_volume.is_some() && !matches!(role, Role::Worker(_)) {
        return Err(Failure::usage(format!("--data-volume: {role} has no data")));
    }
    if let Some(parent) = args.with_parent {
        termination::with_parent(parent)?;
    }
    if matches!(role, Role::Worker(_)) {
        say_what_is_ignored(&args);
    }
    let wait = Duration::from_secs(args.secret_wait);
    Ok(roles::Options {
        role,
        job: job(&args)?,
        bounds: bounds(&args)?,
        trust: args.trust(),
        ps_hosts: args.ps_hosts.0,
        data: args.data,
        data_volume: args.data_volume,
        shard: args.shard,
        hold_out: args.hold_out,
        data_memory: args.data_memory.map(|size| size.0),
        skip_broken: args.skip_broken,
        place: Place {
            model_dir: args.model_dir,
            volume: args.volume,
            create: args.create_volume.map(|size| size.0),
            key: KeySource { file: args.key_file, descriptor: args.key_fd },
            min_step: args.min_step,
        },
        init: args.init,
        checkpoint_every: args.checkpoint_every,
        checkpoint_after: Duration::from_secs(args.checkpoint_minutes.max(1).saturating_mul(60)),
        threads: args.threads,
        isa: args.isa.0,
        service: args.secret_service.map(|at| Service { at, app_id: args.app_id, wait }),
        linger: Duration::from_secs(args.linger),
        reattest: (args.reattest > 0).then(|| Duration::from_secs(args.reattest)),
        json: args.json,
        metrics: args.metrics,
        page: args.report == ReportKind::Html,
        image: args.image_digest.map(|image| image.0),
        bom: args.bom,
        pause: Duration::from_millis(args.pause_ms),
        wait: Duration::from_secs(args.wait),
    })
}

/// A worker's number in the job, where its site counts from 0.
fn numbered(role: Role, first: u16) -> Result<Role, Failure> {
    match role {
        Role::Worker(number) => number.checked_add(first).map(Role::Worker).ok_or_else(|| {
            Failure::usage(format!("--first-worker {first}: no worker has such a number"))
        }),
        role => Ok(role),
    }
}

/// Numbers that the parser takes and no job can have.
fn check_numbers(args: &Args) -> Result<(), Failure> {
    let within = |what: &str, value: usize, max: usize| match (1..=max).contains(&value) {
        true => Ok(()),
        false => Err(Failure::usage(format!("{what} is {value}, expected 1 to {max}"))),
    };
    within("the number of workers", args.workers(), WORKERS_MAX.into())?;
    within("--threads", args.threads, THREADS_MAX)?;
    within("--batch-size", args.batch_size as usize, BATCH_MAX as usize)?;
    within("--epochs", args.epochs as usize, u32::MAX as usize)?;
    within("--local-steps", args.local_steps as usize, LOCAL_STEPS_MAX as usize)?;
    let outer = Outer { rate: args.outer_rate, momentum: args.outer_momentum };
    if args.local_steps == 1 && outer != Outer::default() {
        return Err(Failure::usage(
            "--outer-rate and --outer-momentum say what becomes of local steps",
        )
        .hint("--local-steps 2 or more"));
    }
    if args.steps == Some(0) || args.checkpoint_every == 0 {
        return Err(Failure::usage("--steps and --checkpoint-every count from 1"));
    }
    if args.patience == Some(0) || args.patience.is_some() && args.evaluate_every == 0 {
        return Err(Failure::usage("--patience counts evaluations from 1")
            .hint("--patience 1 or more, with --evaluate-every"));
    }
    let parts = [
        ("--lr", rate(args), f32::MAX),
        ("--momentum", args.momentum, 1.0),
        ("--weight-decay", args.weight_decay, 1.0),
        ("--outer-rate", args.outer_rate, f32::MAX),
        ("--outer-momentum", args.outer_momentum, 1.0),
    ];
    for (name, value, max) in parts {
        if !(0.0..=max).contains(&value) {
            let end = if max == 1.0 { " to 1" } else { "" };
            return Err(Failure::usage(format!(
                "{name} is {value}, expected a number from 0{end}"
            )));
        }
    }
    let size = args.image_size;
    if !(SIDE_STEP..=SIDE_MAX).contains(&size) || !size.is_multiple_of(SIDE_STEP) {
        return Err(Failure::usage(format!(
            "--image-size is {size}, expected {SIDE_STEP} to {SIDE_MAX} in steps of {SIDE_STEP}"
        )));
    }
    let one = args.batch_size == 1 && args.norm != NormKind::Group;
    let single = one && args.stem == Stem::Imagenet && size == SIDE_STEP;
    match single {
        true => Err(Failure::usage(
            "--batch-size 1: the last maps of the imagenet stem have one pixel, and the mean over one \
             value is the value: nothing could be learned",
        )
        .hint("--batch-size 2, --stem cifar or --norm group")),
        false => Ok(()),
    }
}

fn job(args: &Args) -> Result<Job, Failure> {
    let (rate, warm_up) = (rate(args), args.warm_up);
    let classes = args.classes.names()?;
    Ok(Job {
        stem: args.stem,
        precision: args.precision,
        conv: args.conv,
        workers: u16::try_from(args.workers()).doing("--workers")?,
        batch_size: args.batch_size,
        epochs: args.epochs,
        steps: args.steps,
        schedule: match args.lr_schedule {
            ScheduleKind::Constant => Schedule::Constant { rate },
            ScheduleKind::Cosine => Schedule::Cosine { rate, warm_up },
        },
        momentum: args.momentum,
        weight_decay: args.weight_decay,
        seed: args.seed,
        augment: args.augment.unwrap_or(Augment::of_side(args.image_size)),
        order: args.order,
        init: None,
        weighting: args.weighting,
        model: args.model,
        shape: Shape { side: args.image_size, channels: CHANNELS, classes: classes.len() },
        classes,
        normalisation: args.normalisation,
        evaluation: Evaluation { every: args.evaluate_every, patience: args.patience },
        wire: args.wire,
        local_steps: (args.local_steps > 1).then_some(args.local_steps),
        outer: Outer { rate: args.outer_rate, momentum: args.outer_momentum },
        quorum: quorum(args)?,
        norm: norm(args)?,
        recipe: recipe(args)?,
    })
}

/// What else steps are made of.
fn recipe(args: &Args) -> Result<Recipe, Failure> {
    let recipe = Recipe {
        nesterov: args.nesterov,
        label_smoothing: args.label_smoothing,
        flip: args.flip,
        cutout: args.cutout,
        bias_rate: args.bias_rate,
        ema: args.ema,
    };
    if args.augment == Some(Augment::None) && (recipe.flip, recipe.cutout) != (Flip::Random, 0) {
        return Err(Failure::usage(
            "--flip and --cutout are parts of --augment standard, parts or resized",
        ));
    }
    match recipe.fault(args.image_size) {
        None => Ok(recipe),
        Some((flag, expected)) => Err(Failure::usage(format!("--{flag}: expected {expected}"))),
    }
}

/// What activations are normalised with.
fn norm(args: &Args) -> Result<Norm, Failure> {
    match (args.norm, args.frozen_after) {
        (NormKind::Batch, None) => Ok(Norm::Batch),
        (NormKind::Group, None) => Ok(Norm::Group),
        (NormKind::Frozen, after) => {
            let after = after.unwrap_or(FROZEN_AFTER);
            match (0.0..=1.0).contains(&after) {
                true => Ok(Norm::Frozen { after }),
                false => Err(Failure::usage(format!(
                    "--frozen-after is {after}, expected a part of the job, 0 to 1"
                ))),
            }
        }
        (_, Some(_)) => Err(Failure::usage("--frozen-after says when statistics stand still")
            .hint("with --norm frozen")),
    }
}

/// When a round may close without everybody.
fn quorum(args: &Args) -> Result<Option<Quorum>, Failure> {
    let all = args.workers();
    match (args.quorum, args.deadline) {
        (None, None) => Ok(None),
        (Some(workers), Some(seconds)) => {
            if workers == 0 || usize::from(workers) > all {
                return Err(Failure::usage(format!(
                    "--quorum is {workers}, expected 1 to the number of workers, {all}"
                )));
            }
            if !(1..=DEADLINE_MAX).contains(&seconds) {
                return Err(Failure::usage(format!(
                    "--deadline is {seconds}, expected 1 to {DEADLINE_MAX} seconds"
                )));
            }
            Ok(Some(Quorum { workers, seconds }))
        }
        (Some(_), None) => Err(Failure::usage("--quorum needs --deadline SECONDS")),
        (None, Some(_)) => Err(Failure::usage("--deadline needs --quorum WORKERS")),
    }
}

/// Which jobs a worker takes.
fn bounds(args: &Args) -> Result<Bounds, Failure> {
    let named = args.job.as_deref().map(|text| match unhex(text).map(<[u8; 32]>::try_from) {
        Some(Ok(digest)) => Ok(digest),
        _ => job_in(Path::new(text)),
    });
    Ok(Bounds {
        job: named.transpose()?,
        batch_min: args.min_batch,
        steps_max: args.max_steps,
        models: args.models.clone(),
    })
}

/// The digest of the job in a file: its definition, or what ps0 keeps beside a model.
fn job_in(path: &Path) -> Result<[u8; 32], Failure> {
    let name = path.display();
    let bytes = read(path)?;
    let value: Value = serde_json::from_slice(&bytes).doing(format!("--job {name}"))?;
    let job = serde_json::to_vec(value.get("job").unwrap_or(&value)).doing(&name)?;
    Ok(Job::parse(&job).doing(format!("--job {name}"))?.digest())
}

/// What defines a job is ps0's to say. Somebody who gives it to a worker believes otherwise.
fn say_what_is_ignored(args: &Args) {
    let defaults = Args::from_args(&["hfl"], &[]).expect("no argument is needed");
    let given = job_flags(args);
    let usual = job_flags(&defaults);
    let ignored: Vec<&str> =
        given.iter().zip(&usual).filter(|(a, b)| a.1 != b.1).map(|(a, _)| a.0).collect();
    if !ignored.is_empty() {
        log::warn!("{}: ignored, a worker takes the job from ps0", ignored.join(", "));
    }
}

/// The rate that is asked for, or the usual one. A step of a worker's own has its images only.
fn rate(args: &Args) -> f32 {
    let sharing = if args.local_steps > 1 { 1 } else { args.workers() };
    let images = sharing as u32 * args.batch_size;
    args.lr.unwrap_or_else(|| Schedule::usual_rate(images, args.image_size, args.init.is_some()))
}

/// The options that define a job, and what they are.
fn job_flags(args: &Args) -> [(&'static str, String); 37] {
    [
        ("--model", args.model.to_string()),
        ("--classes", format!("{:?}", args.classes)),
        ("--image-size", args.image_size.to_string()),
        ("--normalisation", args.normalisation.to_string()),
        ("--stem", args.stem.to_string()),
        ("--precision", args.precision.to_string()),
        ("--norm", format!("{:?}", args.norm)),
        ("--frozen-after", format!("{:?}", args.frozen_after)),
        ("--conv", args.conv.to_string()),
        ("--workers", args.workers().to_string()),
        ("--batch-size", args.batch_size.to_string()),
        ("--epochs", args.epochs.to_string()),
        ("--steps", format!("{:?}", args.steps)),
        ("--lr", format!("{:?}", args.lr)),
        ("--lr-schedule", format!("{:?}", args.lr_schedule)),
        ("--warm-up", format!("{:?}", args.warm_up)),
        ("--momentum", args.momentum.to_string()),
        ("--weight-decay", args.weight_decay.to_string()),
        ("--nesterov", args.nesterov.to_string()),
        ("--bias-rate", args.bias_rate.to_string()),
        ("--ema", args.ema.to_string()),
        ("--label-smoothing", args.label_smoothing.to_string()),
        ("--flip", args.flip.to_string()),
        ("--cutout", args.cutout.to_string()),
        ("--weighting", args.weighting.to_string()),
        ("--seed", args.seed.to_string()),
        ("--augment", format!("{:?}", args.augment)),
        ("--order", args.order.to_string()),
        ("--evaluate-every", args.evaluate_every.to_string()),
        ("--patience", format!("{:?}", args.patience)),
        ("--wire", args.wire.to_string()),
        ("--local-steps", args.local_steps.to_string()),
        ("--outer-rate", args.outer_rate.to_string()),
        ("--outer-momentum", args.outer_momentum.to_string()),
        ("--quorum", format!("{:?}", args.quorum)),
        ("--deadline", format!("{:?}", args.deadline)),
        ("--init", format!("{:?}", args.init)),
    ]
}

#[cfg(test)]
mod tests {
    use argh::FromArgs;

    use super::{Args, Job, job};

    #[test]
    fn a_job_by_default_is_what_no_flag_asks_for() {
        let args = Args::from_args(&["hfl"], &[]).expect("no flag is needed");
        assert_eq!(job(&args).expect("a job"), Job::default());
    }
}
