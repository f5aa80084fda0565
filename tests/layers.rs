//! Who uses whom: no circle between the files of a crate, and arrows between folders that point down.
//!
//! Read from the paths that files write (`crate::`, `super::`, `self::`), with re-exports followed to where a name
//! is made. Unit tests at the end of a file are not read: a test may look at anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::tidy::{ROOT, none, sources};

/// The crates by the folder of their sources.
const CRATES: [&str; 4] = ["src", "kernels/src", "luks/src", "protocol/src"];

/// A module's path below its crate, such as `["training", "roles"]`.
type Module = Vec<String>;

/// The files of one crate: where each module lies, what it re-exports, what it uses.
struct Crate {
    files: BTreeMap<Module, String>,
    exports: BTreeMap<Module, BTreeMap<String, Vec<String>>>,
    uses: BTreeMap<Module, BTreeSet<Module>>,
}

impl Crate {
    fn read(root: &str) -> Self {
        let prefix = format!("{root}/");
        let mut read =
            Self { files: BTreeMap::new(), exports: BTreeMap::new(), uses: BTreeMap::new() };
        let mut texts = BTreeMap::new();
        for (name, text) in sources() {
            let Some(inside) = name.strip_prefix(&prefix) else { continue };
            let module = module_of(inside);
            // What only tests read is no part of the program.
            if module.iter().any(|part| part == "tests") {
                continue;
            }
            read.files.insert(module.clone(), name);
            texts.insert(module, program_text(&text));
        }
        for (module, text) in &texts {
            let exports = read.exports.entry(module.clone()).or_default();
            for path in statements(text, "pub use ").chain(statements(text, "pub(crate) use ")) {
                for mut leaf in expand(&path) {
                    let as_name = leaf.last().cloned().unwrap_or_default();
                    if leaf.last().is_some_and(|name| name == "self") {
                        leaf.pop();
                    }
                    if let Some(whole) = read.files.absolute(module, &leaf) {
                        exports.insert(as_name, whole);
                    }
                }
            }
        }
        for (module, text) in &texts {
            let children = read.files.keys().filter(|file| {
                file.split_last().is_some_and(|(name, parent)| {
                    parent == module.as_slice() && mentions(text, name)
                })
            });
            let children: Vec<Module> = children.cloned().collect();
            let used: BTreeSet<Module> = paths(text)
                .into_iter()
                .filter_map(|path| read.files.absolute(module, &path))
                .chain(children)
                .filter_map(|path| read.made_in(path))
                .filter(|used| used != module)
                .collect();
            read.uses.insert(module.clone(), used);
        }
        read
    }

    /// The module that makes the item at `path`, through re-exports.
    fn made_in(&self, mut path: Vec<String>) -> Option<Module> {
        for _ in 0..8 {
            let depth =
                (0..=path.len()).rev().find(|len| self.files.contains_key(&path[..*len]))?;
            let module = path[..depth].to_vec();
            let export = path.get(depth).and_then(|name| self.exports.get(&module)?.get(name));
            match export {
                Some(target) => {
                    path = target.iter().chain(&path[depth + 1..]).cloned().collect();
                }
                None => return Some(module),
            }
        }
        None
    }

    /// Each circle once, as a chain of files.
    fn circles(&self) -> Vec<String> {
        let mut found = BTreeSet::new();
        for module in self.files.keys() {
            if let Some(mut chain) = self.way(module, module) {
                let least = (0..chain.len()).min_by_key(|at| &chain[*at]).unwrap_or_default();
                chain.rotate_left(least);
                chain.push(chain[0].clone());
                let names: Vec<&str> = chain.iter().map(|part| &*self.files[part]).collect();
                found.insert(names.join(" -> "));
            }
        }
        found.into_iter().collect()
    }

    /// A shortest way from one module to another along what is used, without its end.
    fn way(&self, from: &Module, to: &Module) -> Option<Vec<Module>> {
        let mut before: BTreeMap<&Module, &Module> = BTreeMap::new();
        let mut next = vec![from];
        while !next.is_empty() {
            let mut reached = Vec::new();
            for module in next {
                for used in &self.uses[module] {
                    if used == to {
                        let mut chain = vec![module.clone()];
                        while let Some(parent) = before.get(chain.last().expect("not empty")) {
                            if chain.last() == Some(from) {
                                break;
                            }
                            chain.push((*parent).clone());
                        }
                        chain.reverse();
                        return Some(chain);
                    }
                    if used != from && !before.contains_key(used) {
                        before.insert(used, module);
                        reached.push(used);
                    }
                }
            }
            next = reached;
        }
        None
    }
}

trait Resolve {
    /// A path as a file wrote it, from the root of its crate; `None` for other crates' names.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Vec<String>>;
}

impl Resolve for BTreeMap<Module, String> {
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Vec<String>> {
        let mut whole = module.clone();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                whole.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|part| part == "super") {
                    whole.pop()?;
                    rest = &rest[1..];
                }
            }
            child => {
                let mut inner = module.clone();
                inner.push(child.to_owned());
                if !self.contains_key(&inner) {
                    return None;
                }
            }
        }
        whole.extend(rest.iter().cloned());
        Some(whole)
    }
}

/// `training/roles/mod.rs` is module `training::roles`, `lib.rs` and `main.rs` the root.
fn module_of(inside: &str) -> Module {
    let path = inside.strip_suffix(".rs").expect("a source file");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    match path {
        "lib" => Vec::new(),
        // The binary is a crate of its own above the library.
        "main" => vec!["main".to_owned()],
        path => path.split('/').map(str::to_owned).collect(),
    }
}

/// A file without comments and without the unit tests at its end.
fn program_text(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let text = text.replace("#[cfg(test)]\nuse ", "ignored ");
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The statements that begin with `start`, without it and without the semicolon.
fn statements<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = String> + 'a {
    text.match_indices(start).filter_map(move |(at, _)| {
        let begins = text[..at].rsplit('\n').next().is_some_and(|line| line.trim().is_empty());
        let rest = &text[at + start.len()..];
        begins.then(|| rest.split(';').next().unwrap_or_default().to_owned())
    })
}

/// Every path of the file that can lead to another file: those of `use`, and those written in place.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> =
        statements(text, "use ").flat_map(|path| expand(&path)).collect();
    let code: String = text
        .split(';')
        .filter(|statement| {
            let statement = statement.trim_start();
            !statement.starts_with("use ") && !statement.starts_with("pub")
                || !statement.contains("use ")
        })
        .collect::<Vec<_>>()
        .join(";");
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            let inside = |c: &char| c.is_alphanumeric() || *c == '_' || *c == ':';
            let path: String = code[at..].chars().take_while(inside).collect();
            found.push(
                path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect(),
            );
        }
    }
    found
}

/// Whether the text names something in its child module `name`, as `name::...`, without `use`.
fn mentions(text: &str, name: &str) -> bool {
    text.match_indices(&format!("{name}::")).any(|(at, _)| {
        let line = text[..at].rsplit('\n').next().unwrap_or_default();
        let inner = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        !line.trim_start().starts_with("pub") && !line.ends_with(inner)
    })
}

/// The paths of a tree such as `crate::a::{self, b::{C, D as E}}`.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split("::").map(|part| part.trim().to_owned()).collect()];
    };
    let head: Vec<String> = tree[..open]
        .split("::")
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect();
    let body = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let mut found = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in body.char_indices().chain([(body.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = body[start..at].trim();
                start = (at + 1).min(body.len());
                for leaf in expand(part).into_iter().filter(|_| !part.is_empty()) {
                    found.push(head.iter().cloned().chain(leaf).collect());
                }
            }
            _ => {}
        }
    }
    found
}

/// The folders of a crate as ARCHITECTURE.md lists them, from the top down.
fn layers(root: &str) -> Vec<String> {
    let map = std::fs::read_to_string(format!("{ROOT}/ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let rows = map.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.filter(|row| row.starts_with(&format!("{root}/"))).map(str::to_owned).collect()
}

#[test]
fn no_files_of_a_crate_use_each_other_in_a_circle() {
    let circles = CRATES.iter().flat_map(|root| Crate::read(root).circles()).collect();
    none(circles, "circles of imports");
}

#[test]
fn folders_use_only_what_the_map_lists_below_them() {
    let mut upward = Vec::new();
    for root in CRATES {
        let (read, layers) = (Crate::read(root), layers(root));
        assert!(layers.len() > 3, "{root}: {layers:?}");
        let rank = |module: &Module| {
            let folder = Path::new(&read.files[module]).parent().expect("a folder").display();
            layers.iter().position(|layer| *layer == format!("{folder}/")).unwrap_or_default()
        };
        for (module, used) in &read.uses {
            // The crate's own folder has both what stands above all and what all stand on; circles tell these.
            for used in used.iter().filter(|used| rank(used) != 0 && rank(used) < rank(module)) {
                upward.push(format!("{} -> {}", read.files[module], read.files[used]));
            }
        }
    }
    none(upward, "arrows that point up");
}

#[test]
fn circles_are_found() {
    let uses = |pairs: &[(&str, &str)]| {
        let module = |name: &str| vec![name.to_owned()];
        let mut read =
            Crate { files: BTreeMap::new(), exports: BTreeMap::new(), uses: BTreeMap::new() };
        for (from, to) in pairs {
            for name in [from, to] {
                read.files.insert(module(name), format!("{name}.rs"));
                read.uses.entry(module(name)).or_default();
            }
            read.uses.entry(module(from)).or_default().insert(module(to));
        }
        read.circles()
    };
    assert!(uses(&[("a", "b"), ("b", "c"), ("a", "c")]).is_empty());
    assert_eq!(uses(&[("a", "b"), ("b", "c"), ("c", "a")]), ["a.rs -> b.rs -> c.rs -> a.rs"]);
    let tree = expand("crate::a::{self, b::{C, D as E}, F}");
    let flat: Vec<String> = tree.iter().map(|path| path.join("::")).collect();
    assert_eq!(flat, ["crate::a::self", "crate::a::b::C", "crate::a::b::D", "crate::a::F"]);
}
