//! `hfl measure` and `hfl quote --event-log` as commands: what they say of good files, and what of hostile ones.

use std::fs::{self, File};
use std::path::Path;
use std::process::Output;

use protocol::{CertificateEvidence, Evidence, hex, unhex};
use ring::digest::{Context, SHA256, SHA384, digest};
use serde_json::{Value, json};

use crate::cli::hfl;
use crate::processes::Dir;

const PAGE: usize = 4096;

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

fn write(dir: &Dir, name: &str, bytes: &[u8]) -> String {
    fs::write(dir.path(name), bytes).expect("write");
    text(&dir.path(name))
}

fn sha384(parts: &[&[u8]]) -> Vec<u8> {
    digest(&SHA384, &parts.concat()).as_ref().to_vec()
}

/// What a register comes to by these events.
fn replayed(events: &[Vec<u8>]) -> String {
    hex(&events.iter().fold(vec![0; 48], |register, event| sha384(&[&register, event])))
}

/// What it prints, or the error of a refusal, which has to have these parts.
#[track_caller]
fn refused(output: &Output, code: i32, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    for part in parts {
        assert!(said.contains(part), "'{part}' not in: {said}");
    }
}

/// A section of firmware: offset and length in the image, address, length in memory, kind, attributes.
type Section = (u32, u32, u64, u64, u32, u32);

/// Two pages that are measured, and one of temporary memory that is only added.
const SECTIONS: [Section; 2] =
    [(0x1000, 0x2000, 0xffc0_1000, 0x2000, 0, 1), (0, 0, 0x81_0000, 0x1000, 3, 0)];

/// An image as Intel's "TDX Virtual Firmware Design Guide" has it: metadata, the table that leads there, and a reset
/// vector.
fn firmware(sections: &[Section], count: u32) -> Vec<u8> {
    let mut image: Vec<u8> = (0..0x6000_u32).map(|at| (at / 7) as u8).collect();
    let mut metadata = b"TDVF".to_vec();
    let head = [16 + 32 * sections.len() as u32, 1, count];
    metadata.extend(head.iter().flat_map(|word| word.to_le_bytes()));
    for (offset, raw, address, len, kind, attributes) in sections {
        metadata.extend([offset, raw].iter().flat_map(|word| word.to_le_bytes()));
        metadata.extend([address, len].iter().flat_map(|word| word.to_le_bytes()));
        metadata.extend([kind, attributes].iter().flat_map(|word| word.to_le_bytes()));
    }
    image[0x4000..0x4000 + metadata.len()].copy_from_slice(&metadata);
    let guid = |digits: &str| unhex(digits).expect("digits");
    let offset = guid("35657ae44a989847865e4685a7bf8ec2");
    let entry = [&0x2000_u32.to_le_bytes()[..], &22_u16.to_le_bytes(), &offset].concat();
    let len = (entry.len() + 18) as u16;
    let end = guid("de82b596b21ff745baeaa366c55a082d");
    let table = [&entry[..], &len.to_le_bytes(), &end].concat();
    let at = image.len() - 32 - table.len();
    image[at..at + table.len()].copy_from_slice(&table);
    image
}

/// A bzImage with an EFI stub, of so many sections, each the whole of what follows the headers.
fn kernel(sections: u16) -> Vec<u8> {
    let mut image: Vec<u8> = (0..0x3000_u32).map(|at| (at / 3) as u8).collect();
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x80_u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(0x86, &sections.to_le_bytes());
    put(0x94, &160_u16.to_le_bytes());
    put(0x98, &0x20b_u16.to_le_bytes());
    put(0x98 + 60, &0x400_u32.to_le_bytes());
    // No certificates.
    put(0x98 + 144, &[0; 8]);
    put(0x98 + 160 + 16, &0x2c00_u32.to_le_bytes());
    put(0x98 + 160 + 20, &0x400_u32.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    image
}

/// MRTD of [`SECTIONS`], by hand: what the TDX module hashes of each page and of each 256 bytes that are measured.
fn mr_td(image: &[u8]) -> String {
    let block = |operation: &[u8], address: usize| {
        let mut block = [0; 128];
        block[..operation.len()].copy_from_slice(operation);
        block[16..24].copy_from_slice(&(address as u64).to_le_bytes());
        block
    };
    let mut context = Context::new(&SHA384);
    for page in 0..2 {
        context.update(&block(b"MEM.PAGE.ADD", 0xffc0_1000 + page * PAGE));
        for part in (0..PAGE).step_by(256) {
            context.update(&block(b"MR.EXTEND", 0xffc0_1000 + page * PAGE + part));
            let at = 0x1000 + page * PAGE + part;
            context.update(&image[at..at + 256]);
        }
    }
    context.update(&block(b"MEM.PAGE.ADD", 0x81_0000));
    hex(context.finish().as_ref())
}

#[test]
fn measure_says_what_a_td_will_be_and_what_it_cannot_know() {
    let dir = Dir::new("measure");
    let (image, bz_image) = (firmware(&SECTIONS, 2), kernel(1));
    let [firmware, kernel, initrd] = [
        write(&dir, "OVMF.fd", &image),
        write(&dir, "vmlinuz", &bz_image),
        write(&dir, "initrd", b"a disk"),
    ];
    let words = ["measure", "--firmware", &firmware, "--kernel", &kernel, "--memory", "2G"];
    let run = |more: &[&str]| {
        let output = hfl(&[&words[..], &["--json"], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let plain = run(&["--raw-kernel", "--cmdline", "quiet"]);
    assert_eq!(plain["mr_td"], mr_td(&image));
    assert_eq!(plain["rt_mr0"], Value::Null, "QEMU's tables are in it");
    // Authenticode leaves out the checksum and the place of the certificates.
    let kernel_hash = sha384(&[
        &bz_image[..0x98 + 64],
        &bz_image[0x98 + 68..0x98 + 144],
        &bz_image[0x98 + 152..0x400],
        &bz_image[0x400..],
    ]);
    let call = ["Calling EFI Application from Boot Option", "\0\0\0\0"];
    let leave = ["Exit Boot Services Invocation", "Exit Boot Services Returned with Success"];
    let told = call.iter().chain(&leave).map(|event| sha384(&[event.as_bytes()]));
    let events: Vec<Vec<u8>> = [kernel_hash].into_iter().chain(told).collect();
    assert_eq!(plain["rt_mr1"], replayed(&events));
    let line = |text: &str| {
        let words: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        sha384(&[&words, &[0, 0]])
    };
    assert_eq!(plain["rt_mr2"], replayed(&[line("quiet")]));
    let disk = run(&["--raw-kernel", "--cmdline", "quiet", "--initrd", &initrd]);
    let expected = replayed(&[line("quiet initrd=initrd"), sha384(&[b"a disk"])]);
    assert_eq!(disk["rt_mr2"], expected);
    // What QEMU writes into the kernel's header is measured by older firmware.
    assert_ne!(run(&["--cmdline", "quiet"])["rt_mr1"], plain["rt_mr1"]);
    let shown = hfl(&words);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains(&mr_td(&image)) && shown.contains("rt_mr0  not computed"), "{shown}");
}

#[test]
fn measure_names_what_is_wrong_with_hostile_files_and_reads_no_further() {
    let dir = Dir::new("measure-hostile");
    let good = [write(&dir, "good.fd", &firmware(&SECTIONS, 2)), write(&dir, "good", &kernel(1))];
    let run = |firmware: &str, kernel: &str, more: &[&str]| {
        hfl(&[&["measure", "--firmware", firmware, "--kernel", kernel], more].concat())
    };
    let memory = ["--memory", "2G"];
    let whole = firmware(&SECTIONS, 2);
    let section = |section: Section| firmware(&[section], 1);
    let images = [
        (Vec::new(), "no metadata of TDX"),
        (b"not firmware".to_vec(), "no metadata of TDX"),
        (whole[..whole.len() - 1].to_vec(), "no metadata of TDX"),
        (whole[..0x5000].to_vec(), "no metadata of TDX"),
        // More sections than there are, or than make sense; beyond the end; more pages than any memory has.
        (firmware(&SECTIONS, u32::MAX), "malformed"),
        (firmware(&SECTIONS, 64), "malformed"),
        (section((0x1000, 0x8000, 0, 0x8000, 0, 1)), "malformed"),
        (section((u32::MAX, u32::MAX, 0, 1 << 32, 0, 0)), "malformed"),
        (section((0, 0, 0, 1 << 50, 3, 0)), "malformed"),
        (section((0, 0, u64::MAX - 4095, 4096, 3, 0)), "malformed"),
        (section((0, 4096, 0, 1 << 60, 0, 1)), "malformed"),
    ];
    for (number, (image, part)) in images.iter().enumerate() {
        let path = write(&dir, "hostile.fd", image);
        let output = run(&path, &good[1], &memory);
        refused(&output, 1, &["measure: the firmware", part]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "case {number}");
    }
    // 65,535 sections of the whole file each would be hashed for hours.
    let mut many = kernel(u16::MAX);
    many.resize(40 << 20, 1);
    let mut headless = kernel(1);
    headless[0x202] = b'X';
    let mut beyond = kernel(1);
    beyond[0x3c..0x40].copy_from_slice(&u32::MAX.to_le_bytes());
    let kernels = [
        (Vec::new(), "no bzImage"),
        (b"MZ".to_vec(), "no bzImage"),
        (kernel(1)[..0x1000 - 1].to_vec(), "no bzImage"),
        (headless, "no bzImage"),
        (beyond, "no image with an EFI stub"),
        (many, "no image with an EFI stub"),
    ];
    for (image, part) in &kernels {
        let path = write(&dir, "hostile", image);
        refused(&run(&good[0], &path, &memory), 1, &["measure: the kernel is", part]);
    }
    // Longer than any: told by its length, not by reading it.
    File::create(dir.path("giant")).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
    let giant = text(&dir.path("giant"));
    refused(&run(&giant, &good[1], &memory), 1, &["giant: more than 64 MiB"]);
    refused(&run(&good[0], &giant, &memory), 1, &["giant: more than 1024 MiB"]);
    let more = [&memory[..], &["--initrd", &giant]].concat();
    refused(&run(&good[0], &good[1], &more), 1, &["giant: more than 4095 MiB"]);
    refused(&run("/nonexistent", &good[1], &memory), 1, &["/nonexistent: No such file"]);
    let tables = [&memory[..], &["--acpi", "/nonexistent"]].concat();
    refused(&run(&good[0], &good[1], &tables), 1, &["/nonexistent/table-loader: No such file"]);
    for (memory, code, part) in [
        ("2X", 2, "no number of bytes"),
        ("99999999999G", 2, "no number of bytes"),
        ("17179869183G", 1, "no machine has so much memory"),
        ("64K", 1, "too little memory"),
    ] {
        let more = ["--memory", memory, "--initrd", &good[1]];
        refused(&run(&good[0], &good[1], &more), code, &[part]);
    }
}

/// Register, kind, digest.
type Event = (usize, u32, Vec<u8>);

/// The quote of a real TD, and the digests that its firmware logged, out of one certificate.
fn real() -> (Vec<u8>, Vec<Event>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/src/identity/dstack.der");
    let certificate = fs::read(path).expect("a certificate");
    let head = [4, 0, 2, 0, 0x81, 0, 0, 0];
    let start = certificate.windows(8).position(|part| part == head).expect("a quote");
    let len = u16::from_be_bytes([certificate[start - 2], certificate[start - 1]]);
    let quote = certificate[start..start + usize::from(len)].to_vec();
    let start = certificate.windows(3).position(|part| part == b"[{\"").expect("a log");
    let log = serde_json::Deserializer::from_slice(&certificate[start..]);
    let log: Value = log.into_iter().next().expect("JSON").expect("JSON");
    let events = log.as_array().expect("events").iter().map(|event| {
        let number = |name: &str| event[name].as_u64().expect("a number");
        let digest = unhex(event["digest"].as_str().expect("digits")).expect("digits");
        (number("imr") as usize, number("event_type") as u32, digest)
    });
    (quote, events.collect())
}

/// A log as firmware writes it, whose events all have this to say.
fn table(events: &[Event], said: &[u8]) -> Vec<u8> {
    let spec = [b"Spec ID Event03\0".as_slice(), &[0; 17]].concat();
    let mut bytes = [&[0; 4][..], &3_u32.to_le_bytes(), &[0; 20]].concat();
    bytes.extend((spec.len() as u32).to_le_bytes());
    bytes.extend(&spec);
    for (register, kind, digest) in events {
        bytes.extend((*register as u32 + 1).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(0x000c_u16.to_le_bytes());
        bytes.extend(digest);
        bytes.extend((said.len() as u32).to_le_bytes());
        bytes.extend(said);
    }
    bytes
}

#[test]
fn an_event_log_is_replayed_into_the_registers_of_a_real_quote() {
    let dir = Dir::new("event-log");
    let (quote, events) = real();
    let registers = Evidence::parse(&quote).expect("a quote").quote;
    let registers = registers.td().expect("a TD").rt_mr;
    let quote = write(&dir, "quote", &quote);
    // What firmware says may be anything: what a terminal would take for a command is not shown.
    let log = write(&dir, "log", &table(&events, b"\x1b[31mD\0i\0s\0k\0\x07\n"));
    let run = |more: &[&str]| {
        let output = hfl(&[&["quote", "--quote", &quote, "--event-log"], more].concat());
        let [out, said] = [&output.stdout, &output.stderr]
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        (output.status.code(), out, said)
    };
    let (code, out, said) = run(&[&log]);
    assert_eq!((code, out.matches("as in the quote\n").count()), (Some(0), 4), "{out}{said}");
    for (number, register) in registers.iter().enumerate() {
        let count = events.iter().filter(|(of, ..)| *of == number).count();
        let line = format!("RTMR{number} {} {count} events, as in the quote\n", hex(register));
        assert!(out.contains(&line), "{line} not in: {out}");
    }

    // A policy with another RTMR2, which is what is explained; and with another MRTD, which no log tells of.
    let other = "ab".repeat(48);
    let set = json!({"mr_td": other, "rt_mr1": hex(&registers[1]), "rt_mr2": other});
    let policy = json!({"verify_mr_td": "on", "verify_rt_mr1": "on", "verify_rt_mr2": "on",
                        "tdx_mrs": [set]});
    let policy = write(&dir, "policy", policy.to_string().as_bytes());
    let (code, out, _) = run(&[&log, "--policy", &policy]);
    assert_eq!(code, Some(0), "{out}");
    let named: Vec<&Event> = events.iter().filter(|(of, ..)| *of == 2).collect();
    assert!(out.contains("not what the policy says:") && out.contains("[31mDisk"), "{out}");
    let shown = out.lines().filter(|line| line.starts_with("  ")).count();
    assert_eq!(shown, named.len(), "{out}");
    assert!(named.iter().all(|(.., digest)| out.contains(&hex(digest))), "{out}");
    assert!(out.contains("MRTD is ") && out.contains("no event log tells of it"), "{out}");
    assert!(!out.contains('\x1b') && !out.contains('\x07'), "{out:?}");

    // A log of another boot: one event differs, or is missing.
    let mut changed = events.clone();
    changed[0].2[0] ^= 1;
    for changed in [&changed[..], &events[1..]] {
        let log = write(&dir, "changed", &table(changed, b""));
        let (code, out, said) = run(&[&log]);
        assert_eq!(code, Some(1), "{out}");
        assert!(out.contains("NOT of this log") && said.contains("1 registers"), "{out}{said}");
    }
}

#[test]
fn a_hostile_event_log_is_named_and_is_never_read_past_its_end() {
    let dir = Dir::new("event-log-hostile");
    let (quote, events) = real();
    let quote = write(&dir, "quote", &quote);
    let bytes = table(&events[..2], b"said");
    // Of the second event: index, kind, count of digests, algorithm, digest, length.
    let at = bytes.len() - (8 + 4 + 2 + 48 + 4 + 4);
    let with = |offset: usize, value: u32| {
        let mut wrong = bytes.clone();
        wrong[at + offset..at + offset + 4].copy_from_slice(&value.to_le_bytes());
        wrong
    };
    let many: Vec<Event> = events.iter().cycle().take(5000).cloned().collect();
    let mut giant_head = bytes.clone();
    giant_head[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut other = bytes.clone();
    other[32] = b'X';
    let cases = [
        (Vec::new(), "it ends early"),
        (b"log".to_vec(), "it ends early"),
        (bytes[..30].to_vec(), "it ends early"),
        (bytes[..at + 9].to_vec(), "it ends early"),
        (bytes[..bytes.len() - 1].to_vec(), "it ends early"),
        (giant_head, "it ends early"),
        (with(62, u32::MAX), "it ends early"),
        (with(62, i32::MAX as u32), "it ends early"),
        (with(8, u32::MAX), "more than eight digests"),
        (with(12, 0x7777), "unknown algorithm"),
        (with(0, 9), "a register that no TD has"),
        (other, "Spec ID Event03"),
        (table(&many, b""), "more than 4096 events"),
        (vec![0; (4 << 20) + 1], "more than 4 MiB"),
    ];
    for (log, part) in &cases {
        let path = write(&dir, "hostile", log);
        let output = hfl(&["quote", "--quote", &quote, "--event-log", &path]);
        refused(&output, 1, &["hostile: no event log of a TD", part]);
    }
    let output = hfl(&["quote", "--quote", &quote, "--event-log", "/dev/zero"]);
    refused(&output, 1, &["/dev/zero: more than 8 MiB"]);
    // Evidence that is none, and that of an enclave, which has no such log.
    let log = write(&dir, "log", &bytes);
    refused(&hfl(&["quote", "--quote", &log, "--event-log", &log]), 1, &["log: "]);
    let certificate = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/src/identity/gramine.der");
    let certificate = fs::read(certificate).expect("a certificate");
    let enclave = CertificateEvidence::parse(&certificate).expect("evidence").quote;
    let enclave = write(&dir, "enclave", &enclave);
    let output = hfl(&["quote", "--quote", &enclave, "--event-log", &log]);
    refused(&output, 1, &["an event log is a TD's"]);
}

/// Firmware of packages of Debian by its SHA-256, and MRTD with pages measured one by one, as
/// `td-shim-tee-info-hash` of Confidential Containers' td-shim (125eeab) has it, and added first, as the crate mosaik
/// 0.4.2 has it.
const FIRMWARE: [(&str, [&str; 2]); 3] = [
    // ovmf 2022.11-6+deb12u2: OVMF.fd
    (
        "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773",
        [
            "4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47",
            "acccbcc870a381adab0d3919d90a7f268ac3b0364771f202ed4bb4e892d045b33db3b32e6924cba830a724eed443f7e1",
        ],
    ),
    // ovmf 2025.02-8+deb13u1: OVMF.fd
    (
        "14954040cc754ade0c625ac3470ea46d4c14318b5b1396de4ef77090203d76db",
        [
            "bdc6fb145880f06f30c8b346b8dce2a99d9351b56892df22f80fcf6574caa9f9c31df8e8576d53b4d0cd1c3f28910e11",
            "456f07902150d008bb913c3e1e84e9297f735a6c83cd2a957a1f0a8bbedb06df188e3837ae48d32c73d473d097dc0db2",
        ],
    ),
    // ovmf-inteltdx 2026.08+ds-2: OVMF.inteltdx.ms.fd
    (
        "a265075b4147a096109e501e76196df1ec8a18659c26f7401492c597ec88f312",
        [
            "a7a1f751abc454f9cbab198ca8d2edb2821935df525c74182b5e776cb0929e8c59aefecce725b0d08a5e9d3d3183bd08",
            "b90b236113eb4c0d4df4ef590568c14e6028a3a31d7e8ac63dee9845df5008d3ebf82d4f5974e933798f65d7a279b9a9",
        ],
    ),
];

#[test]
#[ignore = "a package of Debian: .ci/measure.sh"]
fn mr_td_of_debians_firmware_is_what_other_programs_make_of_it() {
    let path = std::env::var("HFL_FIRMWARE").expect("HFL_FIRMWARE");
    let image = fs::read(&path).expect("the firmware");
    let hash = hex(digest(&SHA256, &image).as_ref());
    let known = FIRMWARE.iter().find(|(of, _)| *of == hash);
    let (_, expected) = known.unwrap_or_else(|| panic!("{path} has {hash}"));
    let dir = Dir::new("measure-debian");
    let kernel = write(&dir, "vmlinuz", &kernel(1));
    for (more, expected) in [&[][..], &["--pages-first"]].iter().zip(expected) {
        let words = ["measure", "--json", "--firmware", &path, "--kernel", &kernel];
        let output = hfl(&[&words[..], &["--memory", "2G"], more].concat());
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(found["mr_td"], **expected, "{more:?}");
    }
    // The second thing that the firmware of a real TD told were the same variables.
    if let Ok(path) = std::env::var("HFL_VARIABLES") {
        let events = real().1;
        let mut of_firmware = events.iter().filter(|(register, ..)| *register == 0).skip(1);
        let variables = fs::read(&path).expect("the variables");
        assert_eq!(of_firmware.next().expect("an event").2, sha384(&[&variables]));
    }
}
