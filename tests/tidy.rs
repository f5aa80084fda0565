//! The rules of this code base as a test: what a reviewer would otherwise have to look for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Files that may hold unsafe code.
const UNSAFE: [&str; 4] = [
    "kernels/src/x86_64/",
    "kernels/src/parallel/",
    "kernels/src/base/arena.rs",
    "luks/src/linux/sys.rs",
];
/// Names of outside worlds, and the only places (in sources, not tests) that may say them.
const WORLDS: [(&str, &[&str]); 8] = [
    (
        "mio::",
        &[
            "protocol/src/session/inquiry.rs",
            "protocol/src/session/net.rs",
            "protocol/src/session/socket.rs",
        ],
    ),
    ("postcard::", &["protocol/src/session/message.rs"]),
    (
        "rustls::",
        &[
            "protocol/src/certified.rs",
            "protocol/src/evidence/sim.rs",
            "protocol/src/identity/chain.rs",
            "protocol/src/identity/owner.rs",
            "protocol/src/judge/dcap/pki.rs",
            "protocol/src/http.rs",
            "protocol/src/http/standin.rs",
            "protocol/src/services/pccs.rs",
            "protocol/src/session/mod.rs",
            "protocol/src/session/alive.rs",
            "protocol/src/session/close.rs",
            "protocol/src/session/judging.rs",
            "protocol/src/session/tls.rs",
            "protocol/src/judge/verify.rs",
        ],
    ),
    ("std::env::args", &["src/main.rs", "kernels/benches/"]),
    ("std::arch::", &["kernels/src/x86_64/", "kernels/src/parallel/"]),
    ("libc::", &["luks/src/linux/", "luks/src/volume.rs"]),
    ("aes::", &["luks/src/data/cipher.rs"]),
    ("safetensors::", &["src/training/checkpoint.rs", "src/commands/demo.rs"]),
];
const LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 120;

pub(crate) fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["src", "kernels", "protocol", "luks", "tests", "fuzz/targets"] {
        collect(&Path::new(ROOT).join(folder), &mut found);
    }
    assert!(found.len() > 40, "only {} source files found", found.len());
    let read = |path: PathBuf| {
        let name = path.strip_prefix(ROOT).expect("inside").to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).expect("UTF-8"))
    };
    found.into_iter().map(read).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("entry").path();
        if path.ends_with("target") {
            // What was built there.
        } else if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Fails with every place at once.
#[track_caller]
pub(crate) fn none(places: Vec<String>, rule: &str) {
    assert!(places.is_empty(), "{rule}:\n  {}", places.join("\n  "));
}

#[test]
fn every_file_says_first_what_it_owns_and_stays_small() {
    let mut places = Vec::new();
    for (name, text) in sources() {
        if !text.starts_with("//! ") {
            places.push(format!("{name}:1: no //! line"));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX {
            places.push(format!("{name}: {lines} lines"));
        }
        let stem = Path::new(&name).file_stem().expect("a name").to_string_lossy().into_owned();
        if ["util", "utils", "helper", "helpers", "common", "misc", "prelude"].contains(&&*stem) {
            places.push(format!("{name}: a name that owns no concept"));
        }
        for (number, line) in text.lines().enumerate() {
            if line.chars().count() > COLUMNS_MAX {
                places.push(format!("{name}:{}: longer than {COLUMNS_MAX}", number + 1));
            }
        }
    }
    none(places, "files");
}

#[test]
fn unsafe_code_and_outside_worlds_stay_in_their_places() {
    let mut places = Vec::new();
    for (name, text) in sources() {
        if name.starts_with("tests/") || name.starts_with("fuzz/") || name.contains("tests") {
            continue;
        }
        let inside = |allowed: &[&str]| allowed.iter().any(|place| name.starts_with(place));
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let place = format!("{name}:{}: {}", number + 1, line.trim());
            if (code.contains("unsafe {") || code.contains("unsafe fn")) && !inside(&UNSAFE) {
                places.push(place.clone());
            }
            for (world, allowed) in WORLDS {
                let word = code.match_indices(world).any(|(at, _)| {
                    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                });
                if word && !inside(allowed) {
                    places.push(place.clone());
                }
            }
        }
    }
    none(places, "code outside its place");
}

#[test]
fn what_belongs_together_is_a_struct_and_no_tuple_parameter() {
    assert_eq!(tuple_parameters("fn a(x: &mut (u8, u8), y: [u8; 2]) -> (u8, u8) {}"), ["a"]);
    assert_eq!(
        tuple_parameters("fn b(f: impl Fn((u8, u8)), P { x, y }: P, (z): (u8)) {}"),
        [""; 0]
    );
    let mut places = Vec::new();
    for (name, text) in sources() {
        if name.contains("src/") && !name.contains("tests") {
            let found = tuple_parameters(&text);
            places.extend(found.iter().map(|function| format!("{name}: fn {function}")));
        }
    }
    none(places, "tuples as parameters");
}

/// The functions that have a parameter whose type is a tuple, or a reference to one.
fn tuple_parameters(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("fn ") {
        let signature = &text[at + 3..];
        let Some(open) = signature.find('(') else { continue };
        let (mut depth, mut tuple) = (0_usize, None);
        for (at, byte) in signature.bytes().enumerate().skip(open) {
            match byte {
                b'(' | b'[' | b'{' => {
                    let before = signature[..at].trim_end_matches("mut ");
                    let is_type = before.trim_end_matches('&').ends_with(": ");
                    depth += 1;
                    tuple = tuple.or((byte == b'(' && depth == 2 && is_type).then_some(depth));
                }
                b',' if tuple == Some(depth) => {
                    found.push(signature[..open].split('<').next().unwrap_or_default());
                    break;
                }
                b')' | b']' | b'}' if depth == 1 => break,
                b')' | b']' | b'}' => {
                    tuple = tuple.filter(|at| *at != depth);
                    depth -= 1;
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn nothing_is_left_unfinished() {
    // In two parts, so that this file does not find itself.
    let marks =
        [("TO", "DO"), ("FIX", "ME"), ("db", "g!("), ("to", "do!("), ("unimplemen", "ted!(")];
    let mut places = Vec::new();
    for (name, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if marks.iter().any(|(a, b)| line.contains(&format!("{a}{b}"))) {
                places.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none(places, "unfinished marks");
}

#[test]
fn every_dependency_has_its_reason_and_there_are_few() {
    let manifest = std::fs::read_to_string(format!("{ROOT}/Cargo.toml")).expect("manifest");
    let table = manifest.split("[workspace.dependencies]").nth(1).expect("dependencies");
    let table = table.split("\n[").next().expect("dependencies");
    let mut places = Vec::new();
    let mut before = "";
    for line in table.lines() {
        let own = line.contains("path =");
        if !line.is_empty() && !line.starts_with('#') && !own && !before.starts_with("# ") {
            places.push(format!("no reason above: {line}"));
        }
        before = line;
    }
    // What the binary is built of; loom and its kin are in the lock file for a test of their own.
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--package", "hfl", "--edges", "normal,build", "--prefix", "none"])
        .args(["--no-dedupe", "--locked", "--offline"])
        .current_dir(ROOT)
        .output()
        .expect("cargo");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).expect("text");
    let crates: BTreeSet<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    if crates.len() > 110 {
        places.push(format!("{} crates in the binary", crates.len()));
    }
    none(places, "dependencies");
}

#[test]
fn the_documents_of_the_house_are_there() {
    let read = |name: &str| std::fs::read_to_string(format!("{ROOT}/{name}")).expect(name);
    let readme = read("README.md");
    assert!(readme.lines().count() <= 150, "README.md is longer than 150 lines");
    for name in ["ARCHITECTURE", "BENCHMARKS", "SECURITY", "CONTRIBUTING", "CHANGELOG"] {
        assert!(readme.contains(&format!("({name}.md)")), "README.md does not lead to {name}.md");
        assert!(read(&format!("{name}.md")).starts_with("# "), "{name}.md has no title");
    }
}

#[test]
fn what_ci_may_skip_is_named_in_the_readme() {
    let read = |path: &Path| std::fs::read_to_string(path).expect("a file of this repository");
    let readme = read(&Path::new(ROOT).join("README.md"));
    let mut skipped = Vec::new();
    for folder in [".ci", "musl"] {
        for entry in std::fs::read_dir(Path::new(ROOT).join(folder)).expect("scripts").flatten() {
            let script = read(&entry.path());
            let names = script.split("SKIPPED ").skip(1).map(|rest| rest.split(':').next());
            skipped.extend(names.flatten().map(str::to_owned));
        }
    }
    assert!(skipped.len() > 4, "{skipped:?}");
    skipped.retain(|name| !readme.contains(&format!("`{name}` (")));
    none(skipped, "checks that CI may skip and README.md does not name");
}

#[test]
fn the_architecture_maps_every_folder() {
    let map = std::fs::read_to_string(format!("{ROOT}/ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let mut places = Vec::new();
    for (name, _) in sources() {
        let folder = Path::new(&name).parent().expect("a folder").display().to_string();
        let inside = ["kernels/", "protocol/", "luks/"].iter().any(|own| name.starts_with(own));
        // A folder beside a file of its name belongs to that file.
        let owned = Path::new(ROOT).join(format!("{folder}.rs")).exists();
        if owned || inside && !name.contains("/src/") || name.starts_with("tests/") {
            continue;
        }
        if !map.contains(&format!("| `{folder}/` |")) && !places.contains(&folder) {
            places.push(folder);
        }
    }
    none(places, "folders that ARCHITECTURE.md does not map");
}

#[test]
fn each_attack_of_the_table_has_a_test_that_exists() {
    let sources = sources();
    let is_test = |name: &str| {
        let line = format!("fn {name}() {{");
        sources.iter().any(|(_, text)| {
            let at = text.find(&line);
            at.is_some_and(|at| text[..at].trim_end().ends_with("#[test]"))
        })
    };
    let table = std::fs::read_to_string(format!("{ROOT}/protocol/ATTACKS.md")).expect("ATTACKS.md");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).collect();
    assert!(rows.len() > 40, "{} rows", rows.len());
    let mut places = Vec::new();
    for row in rows.into_iter().filter(|row| !row.starts_with("| attack |")) {
        let cells: Vec<&str> = row.trim_matches(['|', ' ']).split(" | ").collect();
        let [attack, _, tests] = cells[..] else {
            places.push(format!("not three cells: {row}"));
            continue;
        };
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        if names.is_empty() || tests.split('`').step_by(2).any(|between| between.len() > 2) {
            places.push(format!("{attack}: names of tests, and no more"));
        }
        let missing = names.into_iter().filter(|name| !is_test(name));
        places.extend(missing.map(|name| format!("{attack}: no test {name}")));
    }
    none(places, "protocol/ATTACKS.md");
}
