//! The binary needs nothing: no interpreter, no library, and it is position-independent.

#[test]
fn the_binary_is_static_pie() {
    let bytes = std::fs::read(env!("CARGO_BIN_EXE_hfl")).expect("built");
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!(&bytes[..5], b"\x7fELF\x02", "a 64-bit ELF file");
    assert_eq!(u16_at(16), 3, "ET_DYN: position-independent");
    let (table, size, count) =
        (u64_at(32) as usize, usize::from(u16_at(54)), usize::from(u16_at(56)));
    let mut dynamic = None;
    for index in 0..count {
        let header = table + index * size;
        let kind = u32::from_le_bytes(bytes[header..header + 4].try_into().expect("4 bytes"));
        assert_ne!(kind, 3, "PT_INTERP: the binary asks for an interpreter");
        if kind == 2 {
            dynamic = Some((u64_at(header + 8) as usize, u64_at(header + 32) as usize));
        }
    }
    let (start, len) = dynamic.expect("a static-pie has a dynamic section");
    for entry in (start..start + len).step_by(16) {
        assert_ne!(u64_at(entry), 1, "DT_NEEDED: the binary needs a library");
    }
}
