//! `hfl measure`: what a TD will measure that QEMU starts with a kernel, before anybody started one; and `--event-log`
//! of `hfl quote`: what led to the registers of one that runs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use argh::FromArgs;
use protocol::{Acpi, Boot, Differing, EventLog, Expected, Pages, TdReport, hex};
use serde_json::{Map, Value};

use crate::failure::{Doing, Failure};
use crate::report::print;
use crate::trust::policy::{read, read_policy};

/// Compute what a TD measures that QEMU starts with a kernel of its own (direct boot), as kata does.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "measure",
    example = "{command_name} --firmware OVMF.fd --kernel vmlinuz --initrd initrd.img --cmdline quiet --memory 2G",
    note = "RTMR0 has QEMU's ACPI tables in it: its version, devices and processors. Where they are not given \
            (--acpi) it is not computed. RTMR3 is the guest's own. With firmware of edk2-stable202505 or later \
            (--raw-kernel) RTMR0 has events that are not known here."
)]
pub struct MeasureArgs {
    /// the firmware's image, built for TDX
    #[argh(option)]
    firmware: PathBuf,
    /// the kernel (bzImage)
    #[argh(option)]
    kernel: PathBuf,
    /// the initial RAM disk
    #[argh(option)]
    initrd: Option<PathBuf>,
    /// the kernel's command line, as QEMU is given it
    #[argh(option, default = "String::new()")]
    cmdline: String,
    /// memory of the machine, in bytes (with K, M, G)
    #[argh(option, from_str_fn(bytes))]
    memory: u64,
    /// folder with QEMU's files table-loader, rsdp and tables (/sys/firmware/qemu_fw_cfg/by_name/etc/, raw)
    #[argh(option)]
    acpi: Option<PathBuf>,
    /// the firmware measures the kernel as it is in its file: edk2-stable202505 and later
    #[argh(switch)]
    raw_kernel: bool,
    /// QEMU adds all pages of a section before it measures them: QEMU 8 with Intel's patches
    #[argh(switch)]
    pages_first: bool,
    /// one JSON object on stdout
    #[argh(switch)]
    json: bool,
}

/// Largest firmware, kernel and initial RAM disk: some MiB, some dozen MiB, and what a 32-bit length can say.
const FIRMWARE_MAX: u64 = 64 << 20;
const KERNEL_MAX: u64 = 1 << 30;
const INITRD_MAX: u64 = u32::MAX as u64;

/// Runs the command.
///
/// # Errors
/// When a file cannot be read, or is not what it should be.
pub fn run(args: &MeasureArgs) -> Result<(), Failure> {
    let firmware = whole(&args.firmware, FIRMWARE_MAX)?;
    let kernel = whole(&args.kernel, KERNEL_MAX)?;
    let initrd = args.initrd.as_deref().map(|path| whole(path, INITRD_MAX)).transpose()?;
    let initrd = initrd.unwrap_or_default();
    let folder = args.acpi.as_deref();
    let file = |name: &str| folder.map(|folder| read(&folder.join(name))).transpose();
    let (loader, rsdp, tables) = (file("table-loader")?, file("rsdp")?, file("tables")?);
    let acpi = loader.as_deref().zip(rsdp.as_deref()).zip(tables.as_deref());
    let expected = Boot {
        firmware: &firmware,
        kernel: &kernel,
        initrd: &initrd,
        command_line: &args.cmdline,
        memory: args.memory,
        acpi: acpi.map(|((loader, rsdp), tables)| Acpi { loader, rsdp, tables }),
        pages: if args.pages_first { Pages::AddedFirst } else { Pages::OneByOne },
        is_patched: !args.raw_kernel,
    };
    let Expected { mr_td, rt_mr0, rt_mr1, rt_mr2 } = expected.expected().doing("measure")?;
    let known = [
        ("mr_td", Some(mr_td)),
        ("rt_mr0", rt_mr0),
        ("rt_mr1", Some(rt_mr1)),
        ("rt_mr2", Some(rt_mr2)),
    ];
    if args.json {
        let fields = known.map(|(name, value)| {
            (name.to_owned(), value.map_or(Value::Null, |value| hex(&value).into()))
        });
        return print(&Value::Object(Map::from_iter(fields)).to_string());
    }
    for (name, value) in known {
        let value = value
            .map_or("not computed: QEMU's ACPI tables are in it (--acpi)".into(), |value| {
                hex(&value)
            });
        print(&format!("{name:<7} {value}"))?;
    }
    Ok(())
}

/// A number of bytes, with K, M or G after it.
fn bytes(text: &str) -> Result<u64, String> {
    let units = [('K', 10), ('M', 20), ('G', 30)];
    let found = units.iter().find_map(|(unit, bits)| Some((text.strip_suffix(*unit)?, *bits)));
    let (digits, bits) = found.unwrap_or((text, 0));
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << bits));
    number.ok_or_else(|| format!("'{text}' is no number of bytes, such as 2G"))
}

/// A file that a TD is started with, of at most so many bytes.
fn whole(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let too_long = || Failure::new(format!("{}: more than {} MiB", path.display(), most >> 20));
    let mut bytes = Vec::new();
    let file = File::open(path).doing(path.display())?;
    // What has no length, such as a pipe, is read up to the limit.
    if file.metadata().doing(path.display())?.len() > most {
        return Err(too_long());
    }
    file.take(most + 1).read_to_end(&mut bytes).doing(path.display())?;
    if bytes.len() as u64 > most { Err(too_long()) } else { Ok(bytes) }
}

/// Replays an event log, and names the events behind each register that is not as in the quote or in a policy.
///
/// # Errors
/// When the log is none, or does not lead to the quote's registers.
pub(super) fn explain(log: &Path, report: &TdReport, policy: Option<&Path>) -> Result<(), Failure> {
    let parsed = EventLog::parse(&read(log)?).doing(log.display())?;
    let policy = policy.map(read_policy).transpose()?.unwrap_or_default();
    let unwanted = policy.differing(report);
    let is_unwanted = |name: &str| unwanted.iter().any(|differing| differing.register == name);
    let mut broken = 0;
    for (number, replayed) in parsed.replay().iter().enumerate() {
        let name = format!("RTMR{number}");
        let count = parsed.events().iter().filter(|event| event.register == number).count();
        let is_replayed = *replayed == report.rt_mr[number];
        broken += usize::from(!is_replayed);
        let how = match (is_replayed, is_unwanted(&name)) {
            (false, _) => format!("NOT of this log, which leads to {}", hex(replayed)),
            (true, true) => "as in the quote, and not what the policy says:".into(),
            (true, false) => "as in the quote".into(),
        };
        print(&format!("{name} {} {count} events, {how}", hex(&report.rt_mr[number])))?;
        if is_replayed && !is_unwanted(&name) {
            continue;
        }
        for event in parsed.events().iter().filter(|event| event.register == number) {
            print(&format!(
                "  {} {:#010x} {} {}",
                hex(&event.digest),
                event.kind,
                event.name(),
                event.text()
            ))?;
        }
    }
    let is_logged = |differing: &&Differing| differing.register.starts_with("RTMR");
    for differing in unwanted.iter().filter(|differing| !is_logged(differing)) {
        print(&format!("{differing}; no event log tells of it"))?;
    }
    match broken {
        0 => Ok(()),
        _ => {
            Err(Failure::new(format!("{}: {broken} registers are not of this log", log.display()))
                .hint("the log and the quote of one boot of one TD"))
        }
    }
}
