//! A worker's say: a job out of its bounds is refused, and named on both sides.

use crate::processes::{Cast, Dir};

#[test]
fn a_job_out_of_a_workers_bounds_is_refused_and_named_on_both_sides() {
    let dir = Dir::new("bounds");
    let cast = Cast::new(&dir, "model");
    let ps0 = cast.start("ps0", &[]);
    let other = "0".repeat(64);
    let bounds: [(&[(&str, &str)], &str); 4] = [
        (&[("--min-batch", "16")], "--min-batch is 16"),
        (&[("--max-steps", "7")], "--max-steps is 7"),
        (&[("--models", "resnet101")], "none of --models"),
        (&[("--job", &other)], "--job names 0000"),
    ];
    for (bound, named) in bounds {
        let (code, stderr) = cast.start("worker0", bound).end();
        assert!(code == 1 && stderr.contains(named), "{stderr}");
    }
    // The job that ps0 keeps beside the model, by file.
    let meta = dir.path("model/model.ckpt-meta");
    let meta = meta.to_str().expect("UTF-8");
    let workers = ["worker0", "worker1"]
        .map(|role| cast.start(role, &[("--job", meta), ("--min-batch", "16")]));
    cast.finish(&ps0, workers.into());
    let (code, stderr) = ps0.end();
    assert_eq!(code, 0, "{stderr}");
    for told in ["--min-batch", "--max-steps", "--models", "--job"] {
        assert!(stderr.contains(&format!("its {told}")), "{told}: {stderr}");
    }
}
