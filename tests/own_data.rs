//! Own pictures, by role, from start to `predict`: class folders and NumPy's arrays; what does not fit is refused.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::hfl;
use crate::processes::{Cast, Dir};

fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Coloured pictures of cats, grey ones of dogs, and a file with the job's names.
fn pictures(dir: &Dir) -> (PathBuf, PathBuf) {
    let data = dir.path("pictures");
    for (split, count) in [("train", 8), ("test", 3)] {
        for (class, kinds) in [
            ("cat", ["colour.jpg", "turned.jpg", "colour.png"]),
            ("dog", ["grey.jpg", "grey.png", "deep.png"]),
        ] {
            let folder = data.join(split).join(class);
            std::fs::create_dir_all(&folder).expect("create");
            for number in 0..count {
                let kind = kinds[number % kinds.len()];
                let to = folder.join(format!("{number}-{kind}"));
                std::fs::copy(recorded(kind), to).expect("copy");
            }
        }
    }
    let names = dir.path("classes.txt");
    std::fs::write(&names, "dog\nlynx\ncat\n").expect("write");
    (data, names)
}

/// Trains, and says where the model is.
fn train(dir: &Dir, job: &[(&'static str, &str)], data: &Path) -> PathBuf {
    let cast = Cast::new(dir, "own");
    let ps0 = cast.start("ps0", job);
    let own = [("--data", text(data))];
    let workers = ["worker0", "worker1"].map(|role| cast.start(role, &own));
    cast.finish(&ps0, workers.into());
    dir.path("own")
}

fn json(args: &[&str]) -> Value {
    let output = hfl(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_folder_of_pictures_is_learned_evaluated_and_predicted() {
    let dir = Dir::new("own-folder");
    let (data, names) = pictures(&dir);
    let model = train(
        &dir,
        &[
            ("--classes", text(&names)),
            ("--lr", "0.002"),
            ("--evaluate-every", "1"),
            ("--norm", "frozen"),
        ],
        &data,
    );
    let history = std::fs::read(model.join("history.json")).expect("history");
    let history: Value = serde_json::from_slice(&history).expect("JSON");
    let found = &history["evaluations"][0];
    // Three pictures of each class that there is, of which each worker has every other one.
    let images = |worker: usize| found["by_worker"][worker][1].as_u64();
    assert_eq!([images(0), images(1)], [Some(3); 2], "{history}");
    assert_eq!(found["confusion"].as_array().map(Vec::len), Some(9));
    assert!(model.join("model.best-data").exists());
    let meta = std::fs::read(model.join("model.ckpt-meta")).expect("meta");
    let meta: Value = serde_json::from_slice(&meta).expect("JSON");
    assert_eq!(meta["classes"], serde_json::json!(["dog", "lynx", "cat"]));
    assert_eq!(meta["job"]["norm"], serde_json::json!({"frozen": {"after": 0.25}}));
    let table = dir.path("table.csv");
    let flags = ["--model-dir", text(&model), "--data", text(&data)];
    let more = ["--json", "--predictions", text(&table)];
    let report = json(&[&["eval"], &flags[..], &more].concat());
    let of = |index: usize| {
        (report["classes"][index]["name"].clone(), report["classes"][index]["images"].as_u64())
    };
    assert_eq!(report["images"], 6);
    assert_eq!(
        [of(0), of(1), of(2)],
        [("dog".into(), Some(3)), ("lynx".into(), Some(0)), ("cat".into(), Some(3))]
    );
    assert_eq!(report["classes"][1]["recall"], Value::Null);
    let table = std::fs::read_to_string(table).expect("CSV");
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!((lines.len(), lines[0]), (7, "image,class,found,dog,lynx,cat"));
    assert!(lines[1].contains("test/cat/0-colour.jpg,cat,"), "{}", lines[1]);

    let images = [recorded("colour.jpg"), recorded("grey.png")];
    let images: Vec<&str> = images.iter().map(|image| text(image)).collect();
    let flags = ["predict", "--model-dir", text(&model)];
    let output = hfl(&[&flags[..], &["--json"], &images].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let found: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(found.len(), 2);
    for (found, image) in found.iter().zip(&images) {
        assert_eq!(found["image"], *image);
        let all = found["classes"].as_array().expect("classes");
        let sum: f64 = all.iter().filter_map(|class| class["probability"].as_f64()).sum();
        assert!(all.len() == 3 && (sum - 1.0).abs() < 1e-6, "{found}");
    }
    let shown = hfl(&[&flags[..], &["--top", "1"], &images].concat());
    let shown = String::from_utf8(shown.stdout).expect("UTF-8");
    assert_eq!((shown.lines().count(), shown.matches(" %  ").count()), (4, 2), "{shown}");
    let broken = dir.path("broken.png");
    std::fs::write(&broken, b"\x89PNG\r\n\x1a\n").expect("write");
    let output = hfl(&[&flags[..], &[text(&broken)]].concat());
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && why.contains("broken.png: truncated"), "{why}");
}

#[test]
fn pictures_that_do_not_fit_in_memory_are_learned_from_and_tested_with_all_the_same() {
    let dir = Dir::new("own-away");
    let (data, names) = pictures(&dir);
    let job = [
        ("--classes", text(&names)),
        ("--model", "resnet18"),
        ("--image-size", "64"),
        ("--evaluate-every", "1"),
        ("--steps", "5"),
    ];
    let [here, away] = ["here", "away"].map(|model| {
        let cast = Cast::new(&dir, model);
        let ps0 = cast.start("ps0", &job);
        let own = [("--data", text(&data)), ("--data-memory", "0")];
        let own = &own[..if model == "away" { 2 } else { 1 }];
        let workers = ["worker0", "worker1"].map(|role| cast.start(role, own));
        let hash = cast.finish(&ps0, workers.into());
        let history = std::fs::read(dir.path(model).join("history.json")).expect("history");
        let history: Value = serde_json::from_slice(&history).expect("JSON");
        (hash, history["evaluations"].clone())
    });
    assert_eq!(here.1.as_array().map(Vec::len), Some(3), "{}", here.1);
    assert_eq!(here, away);
}

#[test]
fn arrays_of_numpy_are_learned_and_evaluated() {
    let dir = Dir::new("own-arrays");
    let arrays = recorded("deflated.npz");
    let job = [("--classes", "3"), ("--batch-size", "3"), ("--norm", "group")];
    let model = train(&dir, &job, &arrays);
    let meta = std::fs::read(model.join("model.ckpt-meta")).expect("meta");
    let meta: Value = serde_json::from_slice(&meta).expect("JSON");
    let layer = meta["norm_layer"].as_str().expect("told");
    assert!(layer.contains("GroupNorm(32, channels)"), "{layer}");
    let report = json(&["eval", "--model-dir", text(&model), "--data", text(&arrays), "--json"]);
    assert_eq!(
        (report["images"].as_u64(), report["confusion"].as_array().map(Vec::len)),
        (Some(3), Some(3))
    );
}

#[test]
fn a_worker_with_other_classes_is_refused_with_the_difference() {
    let dir = Dir::new("own-classes");
    let (data, _) = pictures(&dir);
    let cast = Cast::new(&dir, "own");
    let _ps0 = cast.start("ps0", &[("--classes", "cifar-10")]);
    std::fs::rename(data.join("train/dog"), data.join("train/wolf")).expect("rename");
    let worker = cast.start("worker0", &[("--data", text(&data))]);
    let (code, stderr) = worker.end();
    assert_eq!(code, 1, "{stderr}");
    for part in ["classes that the job has not: wolf;", "airplane, automobile", "--classes at ps0"]
    {
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn a_broken_picture_ends_a_worker_with_its_name() {
    let dir = Dir::new("own-broken");
    let (data, names) = pictures(&dir);
    std::fs::write(data.join("train/cat/0-colour.jpg"), b"").expect("write");
    let cast = Cast::new(&dir, "own");
    let _ps0 = cast.start("ps0", &[("--classes", text(&names))]);
    let (code, stderr) = cast.start("worker0", &[("--data", text(&data))]).end();
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("train/cat/0-colour.jpg: the file is empty"), "{stderr}");
}
