//! Room for a job with real processes under real limits: what is refused before the start, what a write that fails
//! leaves.

use crate::processes::{Cast, Dir, Process, STEPS};

/// The program with a limit that the shell sets. Where files may not grow, writes fail instead of signals coming.
fn limited(limit: &str, words: &[String]) -> Process {
    let script = format!("trap '' XFSZ; ulimit {limit} && exec \"$0\" \"$@\"");
    let program = env!("CARGO_BIN_EXE_hfl").to_owned();
    let words = [&["-c".into(), script, program][..], words].concat();
    Process::start_program("sh", &words, "warn")
}

#[test]
fn a_step_that_memory_has_no_room_for_is_refused_and_the_batch_that_fits_trains() {
    let dir = Dir::new("memory");
    // Enough for parameters and some images, in KiB.
    const LIMIT: &str = "-v 600000";
    let alone = [("--workers", "1"), ("--shard", "0/1"), ("--steps", "2"), ("--stem", "cifar")];
    let with = |batch: &'static str| [&alone[..], &[("--batch-size", batch)]].concat();
    let cast = Cast::new(&dir, "large");
    let ps0 = cast.start("ps0", &with("64"));
    let worker = limited(LIMIT, &cast.words("worker0", &alone));
    let (code, stderr) = worker.end();
    assert_eq!(code, 1, "{stderr}");
    for part in ["a step of 64 images", "MiB of memory", "ulimit -v", "--batch-size"] {
        assert!(stderr.contains(part), "'{part}' not in: {stderr}");
    }
    drop(ps0);
    let (_, rest) = stderr.split_once("; --batch-size ").expect("a batch that fits");
    let fits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    assert!((2..64).contains(&fits.parse::<u32>().expect("a number")), "{stderr}");

    let cast = Cast::new(&dir, "fits");
    let ps0 = cast.start("ps0", &with(Box::leak(fits.into_boxed_str())));
    let worker = limited(LIMIT, &cast.words("worker0", &alone));
    cast.finish(&ps0, vec![worker]);

    let cast = Cast::new(&dir, "server");
    let (code, stderr) = limited("-v 300000", &cast.words("ps0", &[])).end();
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("ps0 of 2 workers takes") && stderr.contains("ulimit -v"), "{stderr}");
}

#[test]
fn a_write_that_fails_says_where_what_is_kept_and_the_training_goes_on_from_it() {
    let dir = Dir::new("full");
    let calm = crate::processes::undisturbed(&dir);
    let cast = Cast::new(&dir, "full");
    let unfinished = dir.path("full/model.ckpt-data.tmp");
    let workers = || ["worker0", "worker1"].map(|role| cast.start(role, &[]));
    // No file of more than 100 MB (in blocks of 512 bytes), and a checkpoint has 188.
    let fails = |kept: &str| {
        let ps0 = limited("-f 200000", &cast.words("ps0", &[]));
        let _workers = workers();
        let (code, stderr) = ps0.end();
        assert_eq!(code, 1, "{stderr}");
        for part in ["write ", "full/model.ckpt-data: ", "File too large", kept, "make room"] {
            assert!(stderr.contains(part), "'{part}' not in: {stderr}");
        }
        assert!(!unfinished.exists(), "what could not be finished is in the way");
    };
    fails("there is no checkpoint yet");
    let (ps0, running) = (cast.start("ps0", &[]), workers());
    // The checkpoint of step 3 is whole before another update.
    ps0.wait_for("step: 3,");
    ps0.kill();
    drop(running);
    fails("the checkpoint of step 3 is kept");
    let ps0 = cast.start("ps0", &[]);
    assert_eq!(cast.finish(&ps0, workers().into()), calm, "{STEPS} steps");
}
