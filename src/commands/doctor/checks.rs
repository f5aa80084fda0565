//! The checks, one function a thing; each tells what it found, none ends the others.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use kernels::{Isa, NoTiles};
use luks::{Header, Source as Volume};
use protocol::dcap::{self, Anchor, Collateral, date};
use protocol::{
    Attester, Authority, CloseReason, Evidence, Net, Pccs, Quote, RemoteVerifier, Role,
};
use zeroize::Zeroizing;

use super::args::DoctorArgs;
use super::data;
use super::finding::{Finding, first_line};
use crate::commands::{bench, tier};
use crate::failure::{Doing, Failure};
use crate::hosts::listen_addresses;
use crate::job::shape::Shape;
use crate::job::{Algorithm, Arch, Job, Precision};
use crate::memory;
use crate::model::network::Network;
use crate::training::room;
use crate::training::volume::hint;
use crate::trust::fetch::Keeper;
use crate::trust::policy;
use crate::trust::{Attestation, EARLIEST, Source, clock};
use protocol::hex;

/// Longest wait for a connection, and for its attestation, which may wait for a quote (30 s) on the other side.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
const ATTEST_WAIT: Duration = Duration::from_secs(35);
/// Workers of a job, where nothing says how many: the default.
const WORKERS: u16 = 2;
/// Images of the step that is timed: a second or two on slow machines.
const TIMED: usize = 16;
/// Collateral that ends within so many seconds deserves a word.
const ENDS_SOON: u64 = 3 * 86400;

pub(super) fn all(args: &DoctorArgs) -> Vec<Finding> {
    let is_worker = matches!(args.role, Role::Worker(_));
    let mut findings = vec![clock_check(), cpu(args), memory_left(args)];
    findings.push(tdx(args));
    let attester = args.trust().attester();
    let quote = match &attester {
        Ok(attester) => one_quote(attester.as_ref(), &mut findings),
        Err(failure) => {
            findings.push(Finding::failed(
                "quote",
                first_line(failure),
                match args.policy {
                    Some(_) => "run inside a TD",
                    None => "run inside a TD, or --attestation sim for tests",
                },
            ));
            None
        }
    };
    findings.push(policy(args, attester.as_ref().ok().map(|attester| attester.name())));
    findings.extend(collateral(args, quote.as_ref()));
    findings.push(kernel_volumes());
    findings.extend(args.volume.as_deref().map(|path| volume(args, path)));
    match is_worker {
        true => {
            findings.push(data::check(args));
            findings.extend(args.ps_hosts.0.iter().map(|host| peer(args, "ps0", host)));
        }
        false => findings.extend(args.ps_hosts.0.iter().map(|host| port(host))),
    }
    findings.extend(args.secret_service.as_ref().map(|keeper| secret(args, keeper)));
    findings
}

fn clock_check() -> Finding {
    let now = clock();
    match now >= EARLIEST {
        true => Finding::ok("clock", date(now)),
        false => {
            Finding::failed("clock", date(now), "set the time: certificates will not be valid")
        }
    }
}

fn cpu(args: &DoctorArgs) -> Finding {
    let precision = args.precision;
    let isa = tier::of(Isa::detect(), precision);
    if precision == Precision::Bf16 && !isa.has_bf16() {
        let found = format!("{}, neither AMX nor AVX512-BF16", isa.name());
        return Finding::failed("cpu", found, "--precision fp32, or another machine");
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let batch = TIMED.min(args.batch_size as usize).max(1);
    let report = bench::run(bench::Options {
        stem: args.stem,
        precision,
        conv: Algorithm::Auto,
        shape: Shape::default(),
        batch,
        threads,
        steps: 2,
        isa,
        inference: false,
        scaling: false,
    });
    let seconds = match report {
        Ok(report) => report.median_s * f64::from(args.batch_size) / batch as f64,
        Err(error) => {
            return Finding::failed("cpu", error.to_string(), "more memory, or a smaller batch");
        }
    };
    let why = tier::why_no_better(isa, precision).map_or(String::new(), |why| format!("; {why}"));
    let found = format!(
        "{}, {threads} threads: about {seconds:.2} s a step of {} images ({} stem, {precision}){why}",
        isa.name(),
        args.batch_size,
        args.stem
    );
    match Isa::tiles_checked() {
        _ if isa == Isa::Portable => {
            Finding::warning("cpu", found, "a CPU with AVX2 is ten times as fast")
        }
        Err(NoTiles::Wrong) => {
            Finding::warning("cpu", found, "this CPU computes wrongly: replace it")
        }
        _ => Finding::ok("cpu", found),
    }
}

/// Bytes that the role plans for: with an evaluation each epoch, as jobs have it by default.
fn need(args: &DoctorArgs, network: &Network) -> u64 {
    let (stem, precision, batch_size) = (args.stem, args.precision, args.batch_size);
    let job = Job { stem, precision, batch_size, workers: WORKERS, ..Job::default() };
    match args.role {
        Role::ParameterServer(_) => room::of_server(&job, &network.layout, true),
        _ => room::of_worker(&job, network, batch_size as usize),
    }
}

fn memory_left(args: &DoctorArgs) -> Finding {
    let Ok(network) = Network::new(Arch::default(), args.stem, Shape::default()) else {
        return Finding::failed("memory", "no network", "report this");
    };
    let network = network.computed(Algorithm::Auto);
    let need = need(args, &network);
    let Some(left) = memory::left() else {
        return Finding::warning("memory", "unknown", "mount /proc to have it checked");
    };
    let (have, of) = (left.bytes >> 20, left.of);
    let found = format!("{have} MiB left of {of}, {} needs about {}", args.role, need >> 20);
    // How much they are is known once they are decoded.
    let found = match args.role {
        Role::Worker(_) => {
            format!("{found}; pictures that do not fit beside it are read as needed")
        }
        _ => found,
    };
    match left.bytes > need + need / 8 {
        true => Finding::ok("memory", found),
        false => Finding::failed("memory", found, "a larger guest, or a smaller --batch-size"),
    }
}

fn tdx(args: &DoctorArgs) -> Finding {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let is_td = flags.split_whitespace().any(|flag| flag == "tdx_guest");
    let interface = args.trust().attester().map(|attester| attester.name());
    match (is_td, interface) {
        (true, Ok(name)) => Finding::ok("tdx", format!("a TD; evidence from {name}")),
        // Below a paravisor the guest's CPU does not say that it is one.
        (false, Ok(name)) if args.attestation != Attestation::Sim => {
            Finding::ok("tdx", format!("evidence from {name}"))
        }
        (true, Err(_)) => Finding::failed(
            "tdx",
            "a TD, but nothing that gives quotes",
            "mount -t configfs none /sys/kernel/config; Linux 6.7 or newer, CONFIG_TDX_GUEST_DRIVER",
        ),
        (false, _) if args.attestation == Attestation::Sim => {
            let found = "no TD; simulated evidence was asked for";
            Finding::warning("tdx", found, "for tests only: anybody can forge it")
        }
        (false, _) => Finding::failed(
            "tdx",
            "this is no TD: the CPU has no flag tdx_guest",
            "runtimeClassName kata-qemu-tdx, or a TDX machine type",
        ),
    }
}

fn one_quote(attester: &dyn Attester, findings: &mut Vec<Finding>) -> Option<Quote> {
    let start = Instant::now();
    let quote = attester.quote(&[0; 64]).map_err(|error| error.to_string());
    let parsed = quote.and_then(|bytes| Evidence::parse(&bytes).map_err(|error| error.to_string()));
    match parsed {
        Ok(Evidence { quote, .. }) => {
            let measured = quote.td().map_or(String::new(), |td| hex(&td.mr_td));
            let seconds = start.elapsed().as_secs_f64();
            let found = format!("from {} in {seconds:.2} s, MRTD {measured}", attester.name());
            findings.push(Finding::ok("quote", found));
            Some(quote)
        }
        Err(error) => {
            let advice = "QGS on the host, its vsock port, and PCCS behind it";
            findings.push(Finding::failed("quote", error, advice));
            None
        }
    }
}

fn policy(args: &DoctorArgs, source: Option<&str>) -> Finding {
    let Some(path) = &args.policy else {
        let advice = "hfl quote --policy-template > policy.json, checked by hand";
        return match args.attestation == Attestation::Sim {
            true => Finding::warning("policy", "none: peers must be as this one", advice),
            false => Finding::failed("policy", "no --policy to judge peers with", advice),
        };
    };
    let name = path.display();
    // As a role takes it.
    match args.trust().policy() {
        Ok(found) => {
            let policy = found.unwrap_or_default();
            if let Some(weakness) = policy.weakness() {
                let advice = "switch measurements on, as hfl quote --policy-template does";
                return Finding::warning("policy", format!("{name}: {weakness}"), advice);
            }
            if let Some(told) = policy::open_config(&policy, source) {
                return Finding::warning("policy", format!("{name}: {told}"), policy::CONFIG_HINT);
            }
            let sets = policy.accepted.len();
            Finding::ok("policy", format!("{name}: {sets} sets of measurements"))
        }
        Err(failure) => Finding::failed("policy", first_line(&failure), "mend the file"),
    }
}

fn collateral(args: &DoctorArgs, quote: Option<&Quote>) -> Vec<Finding> {
    const ITEM: &str = "collateral";
    if args.attestation == Attestation::Sim {
        return Vec::new();
    }
    if args.collateral.is_empty() {
        let found = "no --collateral to judge peers with";
        return vec![Finding::failed(ITEM, found, "a file for each kind of platform")];
    }
    let check = |source: &Source| {
        let (name, bundle) = match source {
            Source::File(path) if path.is_dir() => {
                return match is_writable(path) {
                    true => Finding::ok(ITEM, format!("{}: to keep it in", path.display())),
                    false => {
                        let found = format!("{}: cannot be written", path.display());
                        Finding::warning(ITEM, found, "every start will ask the service again")
                    }
                };
            }
            Source::File(path) => {
                if let Some(finding) = remote(path) {
                    return finding;
                }
                (path.display().to_string(), policy::read_collateral(path))
            }
            Source::Service(address, authority) => {
                (address.clone(), fetched(address, authority, quote))
            }
        };
        let bundle = match bundle {
            Ok(bundle) => bundle,
            Err(failure) => {
                let advice = "fetch the file again; is the PCCS up, its certificate the right one?";
                return Finding::failed(ITEM, first_line(&failure), advice);
            }
        };
        let Some(quote) = quote else {
            return Finding::warning(ITEM, format!("{name}: parsed only"), "needs a quote to try");
        };
        let now = clock();
        match dcap::verify(quote, &bundle, &Anchor::default(), now) {
            Ok(verdict) => {
                let end = verdict.valid[1];
                let found =
                    format!("{name}: this platform is {}, until {}", verdict.status, date(end));
                match end < now + ENDS_SOON {
                    true => Finding::warning(ITEM, found, "fetch fresh collateral soon"),
                    false => Finding::ok(ITEM, found),
                }
            }
            Err(fault) => Finding::warning(ITEM, format!("{name}: {fault}"), fault.advice()),
        }
    };
    args.collateral.iter().map(check).collect()
}

/// What there is to say about the configuration of a remote verifier, if a file is that.
fn remote(path: &Path) -> Option<Finding> {
    let bytes = Zeroizing::new(policy::read(path).ok()?);
    if !RemoteVerifier::is_configuration(&bytes) {
        return None;
    }
    let name = path.display();
    Some(match RemoteVerifier::parse(&bytes) {
        Ok(verifier) => Finding::ok("collateral", format!("{name}: judged by {verifier:?}")),
        Err(error) => {
            Finding::failed("collateral", format!("{name}: {error}"), "mend the configuration")
        }
    })
}

/// Whether files can be made in a folder.
fn is_writable(folder: &Path) -> bool {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok()
}

/// The collateral of this platform from a service.
fn fetched(
    address: &str,
    authority: &Authority,
    quote: Option<&Quote>,
) -> Result<Collateral, Failure> {
    let quote =
        quote.ok_or_else(|| Failure::new(format!("{address}: needs a quote to ask with")))?;
    let origin = dcap::origin(quote, &Anchor::default(), clock()).doing(address)?;
    Pccs::new(address, authority).doing(address)?.fetch(&origin).doing(address)
}

fn kernel_volumes() -> Finding {
    let opens = |path: &str| File::options().read(true).write(true).open(path).is_ok();
    let found = match (opens("/dev/mapper/control"), opens("/dev/loop-control")) {
        (true, true) => "in the process, or through dm-crypt and loop devices",
        _ => "in the process (no root or no device-mapper here, none is needed)",
    };
    Finding::ok("volumes", found)
}

fn volume(args: &DoctorArgs, path: &Path) -> Finding {
    const ITEM: &str = "volume";
    match Volume::new(path).read_header() {
        Ok(header) if header.has_mac() => {
            let name = path.display();
            let is_server = matches!(args.role, Role::ParameterServer(_));
            match room_inside(args, path, &header) {
                Ok(room) if is_server => {
                    Finding::ok(ITEM, format!("{name}: header id {}; {room}", header.id()))
                }
                Err(failure) if is_server => Finding::failed(
                    ITEM,
                    first_line(&failure),
                    "a larger file (then hfl luks resize), or room where it lies",
                ),
                _ => Finding::ok(ITEM, format!("{name}: header id {}", header.id())),
            }
        }
        Ok(_) => Finding::failed(
            ITEM,
            format!("{}: its header has no MAC", path.display()),
            "hfl luks seal, where the volume was made",
        ),
        Err(error) => {
            let advice = hint(&error).unwrap_or("hfl luks create");
            Finding::failed(ITEM, format!("{}: {error}", path.display()), advice)
        }
    }
}

/// Whether two checkpoints have room in a volume, as far as can be said without its passphrase.
fn room_inside(args: &DoctorArgs, path: &Path, header: &Header) -> Result<String, Failure> {
    let network = Network::new(Arch::default(), args.stem, Shape::default()).doing("network")?;
    let device = File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)));
    let segment = header.metadata().segment;
    let len = segment.len_on(device.doing(path.display())?).doing(path.display())?;
    // Tags and their journal take less than that.
    let len = if segment.integrity { len - len / 24 } else { len };
    room::check_closed_volume(path, len, &network.layout)
}

fn port(host: &str) -> Finding {
    let bound = listen_addresses(host)
        .and_then(|addresses| addresses.are_free())
        .map_err(|failure| first_line(&failure));
    match bound {
        Ok(_) => Finding::ok("port", format!("{host} is free")),
        Err(error) => Finding::failed("port", error, "another port, or end who has it"),
    }
}

/// Whether who keeps the passphrase would give it; a resource is fetched, and forgotten.
fn secret(args: &DoctorArgs, keeper: &Keeper) -> Finding {
    const ITEM: &str = "secret service";
    match keeper {
        Keeper::Service(host) => peer(args, ITEM, &host.address),
        Keeper::Trustee(resource) => match resource.fetch() {
            Ok(_) => Finding::ok(ITEM, format!("{resource}: given to this guest")),
            Err(error) => Finding::failed(
                ITEM,
                format!("{resource}: {error}"),
                "agent.guest_components_rest_api=all in the guest, and Trustee's policy of the resource",
            ),
        },
    }
}

/// Name, port, and a whole attested conversation that asks for nothing.
fn peer(args: &DoctorArgs, item: &'static str, host: &str) -> Finding {
    let addresses = match host.to_socket_addrs() {
        Ok(addresses) => addresses.collect::<Vec<_>>(),
        Err(error) => {
            let found = format!("{host}: {error}");
            return Finding::failed(item, found, "the name in DNS, or /etc/hosts");
        }
    };
    let listens =
        addresses.iter().any(|address| TcpStream::connect_timeout(address, CONNECT_WAIT).is_ok());
    if !listens {
        let found = format!("{host}: nobody answers");
        return Finding::warning(item, found, "start it, or open the port between the hosts");
    }
    let config = match args.trust().config(Role::TrustedNode) {
        Ok(config) => config,
        Err(failure) => {
            let found = format!("{host} answers; not attested: {}", first_line(&failure));
            return Finding::warning(item, found, "mend what failed above");
        }
    };
    let opened = Net::new(config).and_then(|mut net| attest(&mut net, host));
    match opened {
        Ok(Ok(role)) => Finding::ok(item, format!("{host}: {role}, attested")),
        Ok(Err(why)) => {
            Finding::failed(item, format!("{host}: {why}"), "policies and images on both sides")
        }
        Err(error) => Finding::failed(item, format!("{host}: {error}"), "the network between"),
    }
}

fn attest(net: &mut Net, host: &str) -> std::io::Result<Result<Role, CloseReason>> {
    let id = net.connect(host)?;
    let end = Instant::now() + ATTEST_WAIT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        net.poll(Some(left), &[0; 32])?;
        let mut role = None;
        net.drive(id, |session| {
            session.next_event()?;
            role = session.peer().map(|peer| peer.role);
            match role.is_some() || Instant::now() >= end {
                true => Err(session.close(None)),
                false => Ok(()),
            }
        });
        if let Some(role) = role {
            return Ok(Ok(role));
        }
        if let Some(over) = net.take_ended().pop() {
            return Ok(Err(over.why));
        }
    }
}

#[cfg(test)]
mod tests {
    use argh::FromArgs;

    use super::*;
    use crate::job::Stem;

    #[test]
    fn a_worker_needs_what_its_role_will_ask_for() {
        let job = Job { batch_size: 32, stem: Stem::Cifar, ..Job::default() };
        let words = ["--batch-size", "32", "--stem", "cifar"];
        let args = DoctorArgs::from_args(&["hfl", "doctor"], &words).expect("arguments");
        let network = Network::of(&job).expect("shapes").computed(job.conv);
        assert_eq!(need(&args, &network), room::of_worker(&job, &network, 50_000));
    }
}
