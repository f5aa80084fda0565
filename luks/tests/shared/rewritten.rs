//! Headers that somebody changed by hand.

/// The volume with another text in the JSON of both copies, under right checksums.
pub(crate) fn rewritten(volume: &[u8], from: &str, to: &str) -> Vec<u8> {
    let mut bytes = volume.to_vec();
    for copy in [0, 16384] {
        let area = copy + 4096;
        let text = String::from_utf8(bytes[area..copy + 16384].to_vec()).expect("text");
        let changed = text.replacen(from, to, 1);
        assert_ne!(text, changed);
        let mut changed = changed.into_bytes();
        changed.resize(12288, 0);
        bytes[area..copy + 16384].copy_from_slice(&changed);
        bytes[copy + 448..copy + 512].fill(0);
        let sum = ring::digest::digest(&ring::digest::SHA256, &bytes[copy..copy + 16384]);
        bytes[copy + 448..copy + 480].copy_from_slice(sum.as_ref());
    }
    bytes
}
