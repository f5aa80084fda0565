//! `hfl luks`: the commands on encrypted volumes.

mod args;
mod convert;
mod derivation;
mod export;
mod filling;
mod headers;
mod keys;
mod opening;
mod resize;

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write as _};

use luks::ext4::FileSystem;
use luks::{Error, Header, Passphrase, mapping};
use serde_json::{Value, json};

pub use args::{LuksArgs, Size};

use args::{Command, CreateArgs, DumpArgs, ExportArgs, MountArgs, OpenArgs, SealArgs, StatusArgs};
use export::{CHUNK, check_left_out, copy, export_files, new_file};
use filling::Tree;
use opening::{explained, mapped, open_volume};

use crate::failure::{Doing, Failure};
use crate::report::print;
use crate::training::volume::{create_filled, now};
use crate::trust::passphrase::KeySource;

/// Bytes of a volume in a file where none are asked for.
const SIZE: u64 = 1 << 30;

/// Runs a command.
///
/// # Errors
/// Why it could not be done.
pub fn run(args: LuksArgs) -> Result<(), Failure> {
    match args.command {
        Command::Close(args) => mapping::close(&args.name).doing("close"),
        Command::Convert(args) => convert::run(&args),
        Command::Create(args) => create(&args),
        Command::Dump(args) => dump(&args),
        Command::Export(args) => export_volume(&args),
        Command::Header(args) => headers::run(args),
        Command::Key(args) => keys::run(args),
        Command::Mount(args) => mount(&args),
        Command::Open(args) => open(&args),
        Command::Resize(args) => resize::run(&args),
        Command::Seal(args) => seal(&args),
        Command::Status(args) => status(&args),
        Command::Unmount(args) => mapping::unmount(&args.directory).doing("unmount"),
    }
}

fn create(args: &CreateArgs) -> Result<(), Failure> {
    let path = &args.volume;
    let is_device = luks::device_len(path).doing(path.display())?.is_some();
    if is_device && args.size.is_some() {
        return Err(Failure::usage("--size, and a block device is filled").hint("without --size"));
    }
    let tree = args.files.as_deref().map(|from| Tree::of(from).doing(from.display()));
    let tree = tree.transpose()?;
    if tree.is_some() && args.no_file_system {
        return Err(Failure::usage("--files, and --no-file-system").hint("one of them"));
    }
    let mut options = luks::Options::new(args.size.map_or(SIZE, |size| size.0));
    options.label = args.label.clone();
    options.sector = args.sector;
    options.integrity = args.integrity;
    options.preallocate = args.preallocate;
    options.cost = args.kdf.cost(args.kdf_memory, args.kdf_time);
    let mut sources: Vec<KeySource> = args
        .key_file
        .iter()
        .map(|file| KeySource { file: Some(file.clone()), descriptor: None })
        .collect();
    if args.key_fd.is_some() || sources.is_empty() {
        sources.push(KeySource { file: None, descriptor: args.key_fd });
    }
    let passphrases: Vec<Passphrase> =
        sources.iter().map(KeySource::read_new).collect::<Result<_, _>>()?;
    let header = args.header.as_deref();
    let fill = |volume| match (&tree, args.no_file_system) {
        (_, true) => Ok(volume),
        (None, false) => FileSystem::format(volume, &args.label, now())?.close(),
        (Some(tree), false) => {
            let files = tree.len() as u64;
            let mut inside = FileSystem::format_for(volume, &args.label, files, now())?;
            tree.copy_to(&mut inside)?;
            inside.close()
        }
    };
    let made = create_filled(path, header, &options, &passphrases, args.force, fill);
    let header = made.map_err(|error| {
        let exists =
            matches!(&error, Error::Io(_, io) if io.kind() == io::ErrorKind::AlreadyExists);
        let failure = Failure::new(format!("create {}: {error}", path.display()));
        match exists {
            true if is_device => failure.hint("another device, or --force to overwrite it"),
            true => failure.hint("another name, or --force to overwrite it"),
            false => failure,
        }
    })?;
    print(&format!(
        "created {}\nuuid      {}\nheader id {}\nkeyslots  {}\ninside    {}",
        path.display(),
        header.uuid(),
        header.id(),
        passphrases.len(),
        match (&tree, args.no_file_system) {
            (_, true) => "nothing".into(),
            (None, false) => "ext4, empty".into(),
            (Some(tree), false) => format!("ext4, {} files and directories", tree.len()),
        },
    ))
}

fn dump(args: &DumpArgs) -> Result<(), Failure> {
    let (source, key) = args.source();
    let header = source.read_header().map_err(|error| explained(&args.volume, &error))?;
    if args.volume_key {
        let passphrase = key.read()?;
        let limit = u64::MAX;
        let (_, key) = header
            .unlock(&passphrase, args.slot, limit)
            .map_err(|error| explained(&args.volume, &error))?;
        return print(&key.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }));
    }
    let described = describe(&header);
    if args.json {
        return print(&described.to_string());
    }
    print(table(&header).trim_end())
}

/// The header as one JSON object.
fn describe(header: &Header) -> Value {
    let metadata: Value = serde_json::from_str(&header.json()).expect("our own JSON");
    json!({
        "uuid": header.uuid(),
        "label": header.label(),
        "subsystem": header.subsystem(),
        "sequence": header.sequence(),
        "header_id": header.id().to_string(),
        "header_mac": header.has_mac(),
        "metadata": metadata,
    })
}

/// The header for people.
fn table(header: &Header) -> String {
    let metadata = header.metadata();
    let segment = metadata.segment;
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{name:<10} {value}");
    };
    line("uuid", &header.uuid());
    line("label", &header.label().escape_debug());
    line("header id", &header.id());
    let mac =
        if header.has_mac() { "present, checked when it opens" } else { "none (hfl luks seal)" };
    line("header mac", &mac);
    let tags = if segment.integrity { " with hmac-sha256 tags" } else { "" };
    let cipher = format!("aes-xts-plain64, {} byte sectors{tags}", segment.sector);
    line("cipher", &cipher);
    line("data from", &format!("byte {}", segment.offset));
    for slot in &metadata.keyslots {
        let opens = match metadata.segment_digest().keyslots.contains(&slot.number) {
            true => "",
            false => ", of no segment",
        };
        let described = format!(
            "{}, {} bit key, priority {}{opens}",
            slot.kdf.cost.name(),
            8 * slot.key_len,
            slot.priority
        );
        line(&format!("keyslot {}", slot.number), &described);
    }
    for (number, token) in &metadata.tokens {
        line(&format!("token {number}"), &token.text().escape_default());
    }
    text
}

fn export_volume(args: &ExportArgs) -> Result<(), Failure> {
    let (source, key) = args.source();
    if args.raw.is_some() == args.files.is_some() {
        return Err(Failure::usage("export needs --raw FILE or --files DIR"));
    }
    let volume = open_volume(&source, &key.read()?)?;
    match (&args.raw, &args.files) {
        (Some(path), _) if path.as_os_str() == "-" => {
            let left_out = copy(&volume, &mut io::stdout().lock()).doing("stdout")?;
            check_left_out(volume, left_out)
        }
        (Some(path), _) => {
            let file = new_file(path).doing(path.display())?;
            let mut out = BufWriter::with_capacity(CHUNK, file);
            let copied = copy(&volume, &mut out).and_then(|left| out.flush().map(|()| left));
            check_left_out(volume, copied.doing(path.display())?)
        }
        (None, directory) => {
            let directory = directory.as_ref().expect("one of the two");
            let files =
                FileSystem::open(volume).map_err(|error| explained(&args.volume, &error))?;
            let exported = export_files(&files, directory)?;
            print(&format!("{} files in {}", exported.count, directory.display()))?;
            exported.complete()
        }
    }
}

fn open(args: &OpenArgs) -> Result<(), Failure> {
    let (source, key) = args.source();
    let device = mapping::open(&source, &key.read()?, &args.name, args.read_only)
        .map_err(|error| mapped(&args.volume, &error))?;
    print(&format!("/dev/mapper/{}", device.name))
}

fn mount(args: &MountArgs) -> Result<(), Failure> {
    let (source, key) = args.source();
    let fail = |error: Error| explained(&args.volume, &error);
    let header = source.read_header().map_err(fail)?;
    let name = args.name.clone().unwrap_or_else(|| format!("hfl-{}", header.uuid()));
    let passphrase = key.read()?;
    let device = mapping::mount(&source, &passphrase, &name, &args.directory, args.read_only);
    let device = device.map_err(|error| mapped(&args.volume, &error))?;
    print(&format!("/dev/mapper/{} on {}", device.name, args.directory.display()))
}

fn status(args: &StatusArgs) -> Result<(), Failure> {
    let status = mapping::status(&args.name).doing("status")?;
    let key = if status.keyring { "kernel keyring" } else { "in the table" };
    let mapping::DeviceNumber { major, minor } = status.device.number;
    if args.json {
        return print(
            &json!({
                "name": status.device.name,
                "uuid": status.device.uuid,
                "device": format!("{major}:{minor}"),
                "users": status.device.users,
                "read_only": status.device.read_only,
                "cipher": status.cipher,
                "keyring": status.keyring,
                "below": status.below,
                "offset": status.offset,
                "mounts": status.mounts,
            })
            .to_string(),
        );
    }
    let mode = if status.device.read_only { "read only" } else { "read and write" };
    let mounts = if status.mounts.is_empty() { "nowhere".into() } else { status.mounts.join(", ") };
    print(&format!(
        "/dev/mapper/{} is active\nuuid    {}\ncipher  {}\nkey     {key}\n\
         device  {major}:{minor} over {} from sector {}\nmode    {mode}\nmounted {mounts}",
        status.device.name, status.device.uuid, status.cipher, status.below, status.offset,
    ))
}

fn seal(args: &SealArgs) -> Result<(), Failure> {
    let (source, key) = args.source();
    let header = source.seal(&key.read()?).map_err(|error| explained(&args.volume, &error))?;
    print(&format!("sealed {}\nheader id {}", args.volume.display(), header.id()))
}
