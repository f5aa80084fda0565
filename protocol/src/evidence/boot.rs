//! `Boot`: MRTD and RTMR0 to RTMR2 of a TD that QEMU starts with a kernel of its own (direct boot), from what it is
//! started with. The orders of events and their texts are OVMF's.
//!
//! What it cannot know: the ACPI tables, which QEMU makes of the machine (its version, devices, processors). Without
//! them RTMR0 is not computed. RTMR3 is the guest's own.

use ring::digest::{Context, SHA384};

use super::event_log::extended;
use super::tdvf::{BootError, Firmware, Pages, u32_at};

/// What a TD is started with.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// The firmware's image.
    pub firmware: &'a [u8],
    /// The kernel, a bzImage with EFI stub.
    pub kernel: &'a [u8],
    /// The initial RAM disk; empty without one.
    pub initrd: &'a [u8],
    /// The kernel's command line, as QEMU is given it.
    pub command_line: &'a str,
    /// Memory, in bytes.
    pub memory: u64,
    /// The tables that QEMU gives the firmware.
    pub acpi: Option<Acpi<'a>>,
    /// How QEMU adds pages.
    pub pages: Pages,
    /// Whether QEMU writes into the kernel's header, and the firmware measures that: before edk2-stable202505.
    pub is_patched: bool,
}

/// QEMU's ACPI tables: files of fw_cfg (`/sys/firmware/qemu_fw_cfg/by_name/etc/` in a guest of the same machine).
#[derive(Clone, Copy, Debug)]
pub struct Acpi<'a> {
    /// `table-loader`.
    pub loader: &'a [u8],
    /// `acpi/rsdp`.
    pub rsdp: &'a [u8],
    /// `acpi/tables`.
    pub tables: &'a [u8],
}

/// What they come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// MRTD.
    pub mr_td: [u8; 48],
    /// RTMR0, where the ACPI tables are known.
    pub rt_mr0: Option<[u8; 48]>,
    /// RTMR1.
    pub rt_mr1: [u8; 48],
    /// RTMR2.
    pub rt_mr2: [u8; 48],
}

/// Most sections of a kernel's image: as many as Windows' loader takes; Linux has four to eight. Each may claim the
/// whole file, so that more would be hours of hashing.
const SECTIONS_MAX: usize = 96;
/// Most memory of a machine: what physical addresses of x86-64 reach.
const MEMORY_MAX: u64 = 1 << 52;

/// The option that OVMF boots where it has none of its own, as of its volume: UiApp.
const BOOT_OPTION: &[u8] = b"\x09\x01\x00\x00\x2c\x00U\0i\0A\0p\0p\0\0\0\x04\x07\x14\x00\xc9\xbd\xb8\x7c\xeb\xf8\
    \x34\x4f\xaa\xea\x3e\xe4\xaf\x65\x16\xa1\x04\x06\x14\x00\x21\xaa\x2c\x46\x14\x76\x03\x45\x83\x6e\x8a\xb6\xf4\x66\
    \x23\x31\x7f\xff\x04\x00";
/// EFI_GLOBAL_VARIABLE and EFI_IMAGE_SECURITY_DATABASE_GUID, as they lie in memory.
const GLOBAL: [u8; 16] = *b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c";
const SECURITY: [u8; 16] = *b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f";
/// Below this QEMU's q35 machine has all memory below 4 GiB, else 2 GiB of it.
const LOW_MEMORY_MAX: u64 = 0xb000_0000;
const LOW_MEMORY: u64 = 0x8000_0000;
/// What QEMU keeps free below the top of low memory for ACPI data.
const ACPI_DATA_LEN: u64 = 0x2_8000;

fn sha384(parts: &[&[u8]]) -> [u8; 48] {
    let mut context = Context::new(&SHA384);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().try_into().expect("SHA-384 has 48 bytes")
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// What a register comes to by these events.
fn register(events: &[[u8; 48]]) -> [u8; 48] {
    events.iter().fold([0; 48], |register, digest| extended(&register, digest))
}

/// A variable without a value, as it is measured (UEFI_VARIABLE_DATA).
fn empty_variable(vendor: &[u8; 16], name: &str) -> [u8; 48] {
    let len = name.len() as u64;
    sha384(&[vendor, &len.to_le_bytes(), &[0; 8], &utf16(name)])
}

impl Boot<'_> {
    /// The measurements.
    ///
    /// # Errors
    /// When firmware or kernel are none.
    pub fn expected(&self) -> Result<Expected, BootError> {
        let firmware = Firmware::parse(self.firmware)?;
        if self.memory > MEMORY_MAX {
            return Err(BootError("no machine has so much memory"));
        }
        let rt_mr0 = self.acpi.as_ref().map(|acpi| self.rt_mr0(&firmware, acpi)).transpose()?;
        let (rt_mr1, rt_mr2) = (register(&self.kernel_events()?), register(&self.linux_events()));
        Ok(Expected { mr_td: firmware.mr_td(self.pages), rt_mr0, rt_mr1, rt_mr2 })
    }

    fn rt_mr0(&self, firmware: &Firmware, acpi: &Acpi) -> Result<[u8; 48], BootError> {
        if !self.is_patched {
            return Err(BootError(
                "firmware of edk2-stable202505 and later has other events in RTMR0, which are not known here",
            ));
        }
        let none = BootError("the firmware has no volume of variables or no hand-off block");
        let mut events = vec![
            sha384(&[&hand_off(firmware, self.memory).ok_or(none)?]),
            sha384(&[firmware.configuration().ok_or(none)?]),
        ];
        events.extend(configuration_events());
        events.extend([acpi.loader, acpi.rsdp, acpi.tables].map(|file| sha384(&[file])));
        events.extend(option_events());
        Ok(register(&events))
    }

    /// Events of RTMR1: the kernel, and what is called.
    fn kernel_events(&self) -> Result<[[u8; 48]; 5], BootError> {
        let patched = self.is_patched.then(|| self.patched()).transpose()?;
        let kernel = authenticode(patched.as_deref().unwrap_or(self.kernel));
        let kernel = kernel.ok_or(BootError("the kernel is no image with an EFI stub"))?;
        let [called, separator, leaving, left] = call_events();
        Ok([kernel, called, separator, leaving, left])
    }

    /// Events of RTMR2, by the kernel's stub: command line and RAM disk.
    fn linux_events(&self) -> Vec<[u8; 48]> {
        // OVMF names the RAM disk for the stub.
        let has_disk = !self.initrd.is_empty();
        let line = format!("{}{}", self.command_line, if has_disk { " initrd=initrd" } else { "" });
        let mut events = vec![sha384(&[&utf16(&line), &[0, 0]])];
        events.extend(has_disk.then(|| sha384(&[self.initrd])));
        events
    }

    /// The kernel with its header as QEMU writes it (hw/i386/x86.c, x86_load_linux).
    fn patched(&self) -> Result<Vec<u8>, BootError> {
        let mut kernel = self.kernel.to_vec();
        let is_known = kernel.len() >= 0x1000
            && kernel[0x202..0x206] == *b"HdrS"
            && u16::from_le_bytes([kernel[0x206], kernel[0x207]]) >= 0x20c
            && kernel[0x211] & 1 == 1;
        if !is_known {
            return Err(BootError("the kernel is no bzImage of boot protocol 2.12"));
        }
        const REAL: u32 = 0x1_0000;
        const COMMAND_LINE: u32 = 0x2_0000;
        let mut put = |at: usize, value: u32| {
            kernel[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(0x224, COMMAND_LINE - REAL - 0x200);
        put(0x228, COMMAND_LINE);
        let len = u32::try_from(self.initrd.len()).map_err(|_| BootError("4 GiB of RAM disk"))?;
        if len > 0 {
            let is_above_4g = self.kernel[0x236] & 2 != 0;
            let most = if is_above_4g { u64::from(u32::MAX) } else { 0x37ff_ffff };
            let low = low_memory(self.memory).saturating_sub(ACPI_DATA_LEN);
            let most = if most >= low { low.saturating_sub(1) } else { most };
            let address = most.checked_sub(len.into()).ok_or(BootError("too little memory"))?;
            put(0x218, (address & !4095) as u32);
            put(0x21c, len);
        }
        // The loader is QEMU's, and may use the heap.
        kernel[0x210] = 0xb0;
        kernel[0x211] |= 0x80;
        Ok(kernel)
    }
}

fn low_memory(memory: u64) -> u64 {
    if memory >= LOW_MEMORY_MAX { LOW_MEMORY } else { memory }
}

/// Events of RTMR1 about calling the kernel.
fn call_events() -> [[u8; 48]; 4] {
    [
        sha384(&[b"Calling EFI Application from Boot Option"]),
        sha384(&[&[0; 4]]),
        sha384(&[b"Exit Boot Services Invocation"]),
        sha384(&[b"Exit Boot Services Returned with Success"]),
    ]
}

/// Events of RTMR0 about secure boot, which is off, and the end of the firmware's first part.
fn configuration_events() -> [[u8; 48]; 6] {
    [
        empty_variable(&GLOBAL, "SecureBoot"),
        empty_variable(&GLOBAL, "PK"),
        empty_variable(&GLOBAL, "KEK"),
        empty_variable(&SECURITY, "db"),
        empty_variable(&SECURITY, "dbx"),
        sha384(&[&[0; 4]]),
    ]
}

/// Events of RTMR0 about what OVMF boots: an order of one, and that.
fn option_events() -> [[u8; 48]; 2] {
    [sha384(&[&[0, 0]]), sha384(&[BOOT_OPTION])]
}

/// The hand-off block that QEMU makes: its head, and the memory by ranges that the firmware has accepted or not.
fn hand_off(firmware: &Firmware, memory: u64) -> Option<Vec<u8>> {
    const ACCEPTED: u32 = 0;
    const UNACCEPTED: u32 = 7;
    let start = firmware.hand_off()?;
    let mut block =
        [&1_u16.to_le_bytes()[..], &56_u16.to_le_bytes(), &[0; 4], &9_u32.to_le_bytes()].concat();
    block.resize(56, 0);
    let mut resource = |kind: u32, [from, to]: [u64; 2]| {
        block.extend([&3_u16.to_le_bytes()[..], &48_u16.to_le_bytes(), &[0; 20]].concat());
        block.extend([kind, 7].map(u32::to_le_bytes).concat());
        block.extend([from, to - from].map(u64::to_le_bytes).concat());
    };
    let mut at = 0;
    for [from, to] in firmware.accepted() {
        if from < at || to > low_memory(memory) {
            return None;
        }
        if from > at {
            resource(UNACCEPTED, [at, from]);
        }
        resource(ACCEPTED, [from, to]);
        at = to;
    }
    resource(UNACCEPTED, [at, low_memory(memory)]);
    if memory > low_memory(memory) {
        const HIGH: u64 = 1 << 32;
        resource(UNACCEPTED, [HIGH, HIGH + memory - low_memory(memory)]);
    }
    let end = start + block.len() as u64 + 8;
    block[48..56].copy_from_slice(&end.to_le_bytes());
    Some(block)
}

/// SHA-384 of a PE image as Authenticode has it: without its checksum, the place of its certificates, and these.
fn authenticode(image: &[u8]) -> Option<[u8; 48]> {
    let at = u32_at(image, 0x3c)? as usize;
    if image.get(..2)? != b"MZ" || image.get(at..at.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let word =
        |at: usize| Some(usize::from(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?)));
    let (sections, optional_len) = (word(at + 6)?, word(at + 20)?);
    if sections > SECTIONS_MAX {
        return None;
    }
    let optional = at + 24;
    let directories = optional + if word(optional)? == 0x20b { 112 } else { 96 };
    let [checksum, certificates] = [optional + 64, directories + 4 * 8];
    let headers_len = u32_at(image, optional + 60)? as usize;
    let certificates_len = u32_at(image, certificates + 4)? as usize;
    let mut context = Context::new(&SHA384);
    context.update(image.get(..checksum)?);
    context.update(image.get(checksum + 4..certificates)?);
    context.update(image.get(certificates + 8..headers_len)?);
    let mut ranges = Vec::new();
    for number in 0..sections {
        let section = optional + optional_len + 40 * number;
        let [len, start] =
            [u32_at(image, section + 16)? as usize, u32_at(image, section + 20)? as usize];
        if len > 0 {
            ranges.push((start, len));
        }
    }
    ranges.sort_unstable();
    let mut hashed = headers_len;
    for (start, len) in ranges {
        // A bzImage's last section may end behind the file.
        context.update(image.get(start..image.len().min(start.checked_add(len)?))?);
        hashed = hashed.checked_add(len)?;
    }
    let rest = image.len().saturating_sub(certificates_len);
    if certificates_len > 0 && hashed < rest {
        context.update(&image[hashed..rest]);
    }
    context.update(&vec![0; image.len().next_multiple_of(8) - image.len()]);
    context.finish().as_ref().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::event_log::tests::real;
    use crate::evidence::tdvf::tests::{image, with_memory};

    /// A PE image of two sections with certificates behind them, and the header of a bzImage.
    fn kernel() -> Vec<u8> {
        let mut image: Vec<u8> = (0..0x3000_u32).map(|at| (at / 3) as u8).collect();
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3c, &0x80_u32.to_le_bytes());
        put(0x80, b"PE\0\0");
        put(0x86, &2_u16.to_le_bytes());
        put(0x94, &160_u16.to_le_bytes());
        put(0x98, &0x20b_u16.to_le_bytes());
        put(0x98 + 60, &0x400_u32.to_le_bytes());
        put(0x98 + 144, &0x2e00_u32.to_le_bytes());
        put(0x98 + 148, &0x200_u32.to_le_bytes());
        for (number, [len, start]) in [[0x1c00_u32, 0x1000], [0xc00, 0x400]].into_iter().enumerate()
        {
            put(0x98 + 160 + 40 * number + 16, &len.to_le_bytes());
            put(0x98 + 160 + 40 * number + 20, &start.to_le_bytes());
        }
        put(0x202, b"HdrS");
        put(0x206, &0x20f_u16.to_le_bytes());
        put(0x211, &[1]);
        put(0x236, &[2, 0]);
        image
    }

    fn boot<'a>(firmware: &'a [u8], kernel: &'a [u8]) -> Boot<'a> {
        let acpi = Acpi { loader: b"loader", rsdp: b"rsdp", tables: b"tables" };
        Boot {
            firmware,
            kernel,
            initrd: b"disk",
            command_line: "console=hvc0",
            memory: 2 << 30,
            acpi: Some(acpi),
            pages: Pages::OneByOne,
            is_patched: true,
        }
    }

    #[test]
    fn the_events_of_a_real_td_are_those_that_are_computed_without_its_files() {
        let (registers, events) = real();
        let of = |register: usize| -> Vec<[u8; 48]> {
            let of = events.iter().filter(|(of, ..)| *of == register);
            of.map(|(.., digest)| *digest).collect()
        };
        let [first, second, third] = [0, 1, 2].map(of);
        assert_eq!(second[1..], call_events());
        assert_eq!(first[2..8], configuration_events());
        assert_eq!(first[11..], option_events());
        assert_eq!(third.len(), 2, "command line and RAM disk");
        assert_eq!([first, second, third].map(|events| register(&events))[..], registers[..3]);
    }

    /// Its firmware was OVMF with memory where OVMF has it, its machine one of 8 GiB: no other size makes that digest.
    #[test]
    fn the_hand_off_block_of_a_real_td_is_the_one_that_is_computed() {
        let (start, rest) = ((0x80_0000, 0x6000, 3), (0x81_0000, 0x1_0000, 3));
        let image = with_memory(&[rest, (0x80_b000, 0x2000, 3), (0x80_9000, 0x2000, 2), start]);
        let firmware = Firmware::parse(&image).expect("an image");
        let of = |memory: u64| sha384(&[&hand_off(&firmware, memory).expect("it fits")]);
        let (_, events) = real();
        let (.., logged) = events.iter().find(|(register, ..)| *register == 0).expect("an event");
        assert_eq!(of(8 << 30), *logged);
        assert_ne!(of(4 << 30), *logged);
    }

    #[test]
    fn each_thing_that_a_td_is_started_with_changes_the_registers_that_it_should() {
        let (firmware, kernel) = (image(), kernel());
        let base = boot(&firmware, &kernel);
        let expected = base.expected().expect("measured");
        let changed = |boot: Boot| {
            let other = boot.expected().expect("measured");
            [
                other.mr_td != expected.mr_td,
                other.rt_mr0 != expected.rt_mr0,
                other.rt_mr1 != expected.rt_mr1,
                other.rt_mr2 != expected.rt_mr2,
            ]
        };
        let mut code = firmware.clone();
        code[0x1500] ^= 1;
        let mut variables = firmware.clone();
        variables[5] ^= 1;
        let mut other_kernel = kernel.clone();
        other_kernel[0x2000] ^= 1;
        let mut signed = kernel.clone();
        // Certificates, and the checksum.
        signed[0x2f00] ^= 1;
        signed[0x98 + 64] ^= 1;
        let tables = Acpi { loader: b"loader", rsdp: b"rsdp", tables: b"of three processors" };
        let cases = [
            (Boot { firmware: &code, ..base }, [true, false, false, false]),
            (Boot { firmware: &variables, ..base }, [false, true, false, false]),
            (Boot { kernel: &other_kernel, ..base }, [false, false, true, false]),
            (Boot { kernel: &signed, ..base }, [false; 4]),
            (Boot { command_line: "quiet", ..base }, [false, false, false, true]),
            (Boot { acpi: Some(tables), ..base }, [false, true, false, false]),
            // QEMU writes into the kernel's header where the RAM disk lies.
            (Boot { initrd: b"a disk", ..base }, [false, false, true, true]),
            (Boot { memory: 4 << 30, ..base }, [false, true, false, false]),
            (Boot { memory: 1 << 30, ..base }, [false, true, true, false]),
            (Boot { is_patched: false, acpi: None, ..base }, [false, true, true, false]),
            (Boot { pages: Pages::AddedFirst, ..base }, [true, false, false, false]),
        ];
        for (number, (boot, expected)) in cases.into_iter().enumerate() {
            assert_eq!(changed(boot), expected, "case {number}");
        }
        assert!(Boot { is_patched: false, ..base }.expected().is_err(), "unknown events");
        for len in (0..kernel.len()).step_by(37) {
            let _ = Boot { kernel: &kernel[..len], ..base }.expected();
        }
        assert!(Boot { kernel: b"MZ", ..base }.expected().is_err());
        let mut many = kernel.clone();
        many[0x86..0x88].copy_from_slice(&(SECTIONS_MAX as u16 + 1).to_le_bytes());
        assert!(Boot { kernel: &many, ..base }.expected().is_err(), "each may be the whole file");
        let giant = Boot { memory: u64::MAX, ..base }.expected().expect_err("too much memory");
        assert!(giant.to_string().contains("memory"), "{giant}");
    }
}
