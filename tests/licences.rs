//! The licences of what the program is made of: ours is there, each dependency's fits, all come from the registry.

use std::process::Command;

use serde_json::Value;

use crate::tidy::{ROOT, none};

/// Licences that may be part of an Apache-2.0 binary, as `deny.toml` lists them.
fn allowed() -> Vec<String> {
    let rules = std::fs::read_to_string(format!("{ROOT}/deny.toml")).expect("deny.toml");
    let list = rules.split("allow = [").nth(1).and_then(|rest| rest.split(']').next());
    list.expect("a list").split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether an SPDX expression of `OR`, `AND` and parentheses can be met; the older `/` means `OR`.
fn fits(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace('/', " OR ");
    let mut depth = 0;
    let split = |word: &str| {
        depth = 0;
        let mut parts = vec![String::new()];
        for token in expression.replace('(', " ( ").replace(')', " ) ").split_whitespace() {
            depth += i32::from(token == "(") - i32::from(token == ")");
            if depth == 0 && token == word {
                parts.push(String::new());
            } else {
                let last = parts.last_mut().expect("one at least");
                last.push_str(if last.is_empty() { "" } else { " " });
                last.push_str(token);
            }
        }
        parts
    };
    let mut split = split;
    for (word, all) in [("OR", false), ("AND", true)] {
        let parts = split(word);
        if parts.len() > 1 {
            let fit = |part: &String| fits(part, allowed);
            return if all { parts.iter().all(fit) } else { parts.iter().any(fit) };
        }
    }
    let one = expression.trim();
    match one.strip_prefix('(').and_then(|inner| inner.trim_end().strip_suffix(')')) {
        Some(inner) => fits(inner, allowed),
        None => allowed.iter().any(|name| name == one),
    }
}

#[test]
fn every_dependency_may_be_part_of_the_binary() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-musl"])
        .current_dir(ROOT)
        .output()
        .expect("cargo");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let allowed = allowed();
    let mut places = Vec::new();
    let packages = metadata["packages"].as_array().expect("packages");
    for package in packages {
        let [name, licence] =
            ["name", "license"].map(|key| package[key].as_str().unwrap_or("none"));
        let source = package["source"].as_str();
        if !fits(licence, &allowed) {
            places.push(format!("{name}: {licence}"));
        }
        if source.is_some_and(|source| !source.starts_with("registry+")) {
            places.push(format!("{name}: from {source:?}"));
        }
    }
    assert!(packages.len() > 50, "{} packages", packages.len());
    none(places, "licences and sources");
    let own = std::fs::read_to_string(format!("{ROOT}/LICENSE")).expect("LICENSE");
    assert!(own.contains("Apache License") && own.contains("Version 2.0, January 2004"));
}

#[test]
fn expressions_are_read() {
    let allowed = ["MIT".to_owned(), "Apache-2.0".into()];
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND Apache-2.0", true),
        ("(MIT OR GPL-3.0) AND ISC", false),
        ("MIT/GPL-3.0", true),
        ("none", false),
    ] {
        assert_eq!(fits(expression, &allowed), expected, "{expression}");
    }
}
