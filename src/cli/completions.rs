//! `hfl completions`: what a shell offers after `hfl`, taken from the help that people read.

use std::fmt::Write as _;

use argh::FromArgs;

use super::args::{Args, CompletionsArgs};
use super::choice::Shell;
use crate::failure::Failure;
use crate::report::print;

pub(super) fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let levels = levels();
    print(
        match args.shell {
            Shell::Bash => bash(&levels),
            // Zsh understands bash's, once it is asked to.
            Shell::Zsh => format!(
                "#compdef hfl\nautoload -U +X bashcompinit && bashcompinit\n{}",
                bash(&levels)
            ),
            Shell::Fish => fish(&levels),
        }
        .trim_end(),
    )
}

/// A command, and what may follow it.
pub(super) struct Level {
    /// Its words, none for the program itself.
    pub(super) path: Vec<String>,
    options: Vec<Entry>,
    commands: Vec<Entry>,
}

/// A word, and what help says of it.
struct Entry {
    word: String,
    about: String,
}

/// The program, its commands and theirs, each before what is below it.
pub(super) fn levels() -> Vec<Level> {
    let mut levels = vec![level(Vec::new())];
    let mut next = 0;
    while let Some(Level { path, commands, .. }) = levels.get(next) {
        let below = commands.iter().map(|entry| [path, &[entry.word.clone()][..]].concat());
        let below: Vec<Level> = below.map(level).collect();
        next += 1;
        let _ = levels.splice(next..next, below);
    }
    levels
}

fn level(path: Vec<String>) -> Level {
    let words: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
    let help = Args::from_args(&["hfl"], &words).expect_err("help ends the parser").output;
    let [options, commands] = ["Options:", "Commands:"].map(|heading| entries(&help, heading));
    Level { path, options, commands }
}

/// What stands under a heading.
fn entries(help: &str, heading: &str) -> Vec<Entry> {
    let lines = help.lines().skip_while(|line| *line != heading).skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    // What is indented further goes on with a description.
    let first = lines.filter_map(|line| line.strip_prefix("  ")).filter(|l| !l.starts_with(' '));
    let entry = |line: &str| {
        let (word, about) = line.split_once(' ').unwrap_or((line, ""));
        // Help may be asked for by a bare word, too.
        let about = about.trim_start().trim_start_matches("help ").trim_start();
        Entry { word: word.trim_end_matches(',').into(), about: about.into() }
    };
    first.map(entry).collect()
}

/// Follows the words that are there to a command, then offers what its help has; files where nothing fits.
fn bash(levels: &[Level]) -> String {
    let mut script = String::from("_hfl() {\n  local path= word i\n  COMPREPLY=()\n");
    script.push_str("  for ((i = 1; i < COMP_CWORD; i++)); do\n    word=${COMP_WORDS[i]}\n");
    // Commands stand first: after an option a word is its value.
    script.push_str("    [[ $word == -* ]] && break\n    case \"$path $word\" in\n");
    for Level { path, .. } in levels.iter().skip(1) {
        let (last, above) = path.split_last().expect("a command");
        let _ = writeln!(
            script,
            "      \"{} {last}\") path=\"{}\" ;;",
            above.join(" "),
            path.join(" ")
        );
    }
    script.push_str("    esac\n  done\n  case \"$path\" in\n");
    for Level { path, options, commands, .. } in levels {
        let words: Vec<&str> = commands.iter().chain(options).map(|e| e.word.as_str()).collect();
        let _ = writeln!(script, "    \"{}\") word=\"{}\" ;;", path.join(" "), words.join(" "));
    }
    script.push_str("  esac\n");
    script.push_str("  COMPREPLY=($(compgen -W \"$word\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n}\n");
    script.push_str("complete -o default -F _hfl hfl\n");
    script
}

/// A line a word, offered where the words above it are there and none of those beside it.
fn fish(levels: &[Level]) -> String {
    let mut script = String::new();
    for Level { path, options, commands, .. } in levels {
        let mut condition: Vec<String> =
            path.iter().map(|word| format!("__fish_seen_subcommand_from {word}")).collect();
        if !commands.is_empty() {
            let below: Vec<&str> = commands.iter().map(|entry| entry.word.as_str()).collect();
            condition.push(format!("not __fish_seen_subcommand_from {}", below.join(" ")));
        }
        let condition = match condition.is_empty() {
            true => String::new(),
            false => format!(" -n \"{}\"", condition.join("; and ")),
        };
        for Entry { word, about } in commands.iter().chain(options) {
            let about = about.replace('\\', "\\\\").replace('\'', "\\'");
            let _ = match word.strip_prefix("--") {
                Some(option) => {
                    writeln!(script, "complete -c hfl{condition} -l {option} -d '{about}'")
                }
                None => writeln!(script, "complete -c hfl{condition} -f -a {word} -d '{about}'"),
            };
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn every_command_of_every_depth_is_found() {
        let levels = levels();
        let paths: Vec<String> = levels.iter().map(|level| level.path.join(" ")).collect();
        assert!(levels.len() > 40, "{paths:?}");
        for path in ["", "demo", "luks", "luks create", "luks key add", "secret get", "completions"]
        {
            assert!(paths.iter().any(|known| known == path), "{path} in {paths:?}");
        }
        let create = &levels[paths.iter().position(|path| path == "luks create").expect("there")];
        let size = create.options.iter().find(|option| option.word == "--size").expect("--size");
        assert!(size.about.starts_with("bytes in all"), "{}", size.about);
        assert!(create.options.iter().any(|option| option.word == "--help"));
        assert!(create.commands.is_empty());
    }

    #[test]
    fn bash_offers_what_may_follow() {
        let script = bash(&levels());
        let offered = |words: &str| {
            let ask = format!(
                "{script}\nCOMP_WORDS=({words})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n_hfl\n\
                 echo \"${{COMPREPLY[*]}}\""
            );
            let output = Command::new("bash").args(["-c", &ask]).output().expect("bash");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("text").trim().to_owned()
        };
        for (words, expected) in [
            ("hfl dem", "demo"),
            ("hfl luks cre", "create"),
            ("hfl luks create --si", "--size"),
            ("hfl luks key a", "add"),
            ("hfl --volume luks --secret-s", "--secret-service"),
            ("hfl demo --siz", ""),
            ("hfl luks create mod", ""),
        ] {
            assert_eq!(offered(words), expected, "{words}");
        }
    }

    #[test]
    fn fish_has_a_line_for_each_word_under_its_command() {
        let script = fish(&levels());
        for line in [
            "complete -c hfl -n \"__fish_seen_subcommand_from luks; and __fish_seen_subcommand_from create\" \
             -l size -d 'bytes in all",
            "complete -c hfl -n \"not __fish_seen_subcommand_from bench",
            "-f -a demo -d 'Train on this machine",
        ] {
            assert!(script.contains(line), "{line}\n{script}");
        }
        // Nothing that help says ends a quotation.
        let quotes = |line: &str| line.replace("\\'", "").matches('\'').count();
        assert!(script.lines().all(|line| quotes(line) == 2));
    }
}
