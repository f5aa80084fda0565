//! Help: what a first user needs on one screen, the rest on request, the nearest word for an unknown one.

use argh::FromArgs;

use super::args::Args;
use crate::events::SCHEMA;

/// The commands and the ten options of a first job, within 24 lines of 80 columns.
pub const OVERVIEW: &str = "\
One model, trained by several parties on data that each keeps to itself.
usage: hfl --role ROLE [options], or hfl COMMAND [options]
A job
  --role R              ps0, worker0, worker1, ...
  --ps-hosts HOST:PORT  where ps0 is [localhost:60002]
  --workers N           how many workers take part [2]
  --data DIR            pictures of this worker
  --model-dir DIR       where the model is kept; --volume FILE for an encrypted one
  --epochs N            passes over the data [20]
  --batch-size N        images of one worker in a step [128]
  --lr RATE             largest learning rate [0.4 for 256 images a step]
  --attestation SOURCE  auto, tdx, coco, azure, or sim, which protects nothing
  --policy FILE         which code is trusted
Try       demo     a job on this machine      doctor    checks of a host before a job
          bench    time of training steps   measure   what a TD will be
Use       eval     accuracy of a model        predict   classes of pictures
          export   it for other programs      report    the page about a job
          model    fetch it, or serve it
Trust     quote    measurements of a TD       verify    judge a quote or a certificate
          roster   judge who took part        passport  how a model was made
          initdata tie a pod to its quote     replay    rounds computed again
          secret   passphrases for peers    identity keys of owners
Disks     luks     encrypted volumes
All options: hfl help job, hfl help COMMAND. First: hfl demo. Shells: hfl completions";

/// What is asked for by `help` and by a bare `--help`.
#[derive(Debug, PartialEq)]
pub enum Asked<'a> {
    /// A text that stands: the overview, or the schema of `--json`.
    Text(&'static str),
    /// The arguments, which may ask for help of their own.
    Words(Vec<&'a str>),
}

/// What these arguments ask for.
pub fn asked<'a>(words: &[&'a str]) -> Asked<'a> {
    match words {
        ["help" | "--help"] => Asked::Text(OVERVIEW),
        ["help", "events"] => Asked::Text(SCHEMA.trim_ascii_end()),
        ["help", "job"] => Asked::Words(vec!["--help"]),
        ["help", command @ ..] => Asked::Words([command, &["--help"]].concat()),
        words => Asked::Words(words.to_vec()),
    }
}

/// A known option or command that is nearly the one that these arguments name and nobody knows.
pub fn nearest(words: &[&str]) -> Option<String> {
    let commands = words.iter().take_while(|word| !word.starts_with('-')).count();
    let (depth, known) = (0..=commands).rev().find_map(|depth| {
        let asked = [&words[..depth], &["--help"]].concat();
        let help = Args::from_args(&["hfl"], &asked).err().filter(|exit| exit.status.is_ok())?;
        Some((depth, known(&help.output)))
    })?;
    let unknown = |word: &&&str| !known.iter().any(|known| known == *word);
    let is_option = |word: &&&str| word.starts_with("--");
    let wrong = words[depth..].iter().find(|word| is_option(word) && unknown(word));
    let wrong = words.get(depth).filter(|word| !word.starts_with('-')).or(wrong)?;
    let near = known.into_iter().map(|known| (distance(wrong, &known), known)).min()?;
    // A third of a word may be wrong; more than that would be a guess.
    (near.0 * 3 <= wrong.len()).then_some(near.1)
}

/// The first word of each indented line: options and commands.
fn known(help: &str) -> Vec<String> {
    // What is indented further goes on with a description.
    let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
    let first = lines.filter_map(|line| line.split(' ').next().filter(|word| !word.is_empty()));
    first.map(|word| word.trim_end_matches(',').to_owned()).collect()
}

/// Insertions, deletions, replacements and swaps of neighbours between two words (Damerau, "A technique for
/// computer detection and correction of spelling errors", 1964; each letter edited once).
fn distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|word| word.bytes().collect::<Vec<_>>());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::completions::{Level, levels};
    use super::*;

    fn help(words: &[&str]) -> String {
        let asked = [words, &["--help"]].concat();
        Args::from_args(&["hfl"], &asked).expect_err("help").output
    }

    #[test]
    fn the_overview_has_every_command_only_real_options_and_fits_a_screen() {
        assert!(OVERVIEW.lines().count() <= 24);
        assert!(OVERVIEW.lines().all(|line| line.len() <= 88), "{OVERVIEW}");
        let all = help(&[]);
        let (options, commands) = all.split_once("Commands:").expect("commands");
        let (commands, _) = commands.split_once("\n\n").expect("what comes after them");
        let names = known(commands);
        assert!(names.len() > 8, "{names:?}");
        let words: Vec<&str> = OVERVIEW.split([' ', '\n', ';', ',']).collect();
        for name in names {
            assert!(words.contains(&name.as_str()), "{name} is not in the overview");
        }
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(options.contains(&format!("  {option} ")), "{option}");
        }
    }

    #[test]
    fn every_command_ends_its_help_with_an_example() {
        for Level { path, .. } in levels() {
            let words: Vec<&str> = path.iter().map(String::as_str).collect();
            assert!(help(&words).contains("\nExamples:\n"), "hfl {}", path.join(" "));
        }
    }

    #[test]
    fn the_nearest_word_is_named_and_no_other() {
        let cases: [(&[&str], Option<&str>); 7] = [
            (&["dmeo"], Some("demo")),
            (&["--ps-host", "a:1"], Some("--ps-hosts")),
            (&["--role", "ps0", "--bacth-size", "4"], Some("--batch-size")),
            (&["luks", "creat", "x"], Some("create")),
            (&["luks", "create", "x", "--siez", "1G"], Some("--size")),
            (&["--frobnicate"], None),
            (&["xyzzy"], None),
        ];
        for (words, expected) in cases {
            assert_eq!(nearest(words).as_deref(), expected, "{words:?}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn help_of_a_command_is_its_own() {
        assert_eq!(asked(&["--help"]), Asked::Text(OVERVIEW));
        assert_eq!(asked(&["help", "job"]), Asked::Words(vec!["--help"]));
        assert_eq!(asked(&["help", "luks", "dump"]), Asked::Words(vec!["luks", "dump", "--help"]));
        assert_eq!(asked(&["eval", "--help"]), Asked::Words(vec!["eval", "--help"]));
    }
}
