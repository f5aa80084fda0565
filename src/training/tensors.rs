//! The head of a safetensors file, so that its tensors follow one by one and no second copy of them is made.
//!
//! Length of the header, header as JSON filled with spaces to a multiple of 8, then the tensors without gaps.

use std::collections::BTreeMap;
use std::io;

/// A tensor as the header describes it.
pub(crate) struct Described<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// `F32` or `I64`.
    pub(crate) kind: &'static str,
    /// Its sides.
    pub(crate) shape: &'a [usize],
    /// Its bytes.
    pub(crate) len: usize,
}

/// What stands before the first tensor; they follow in this order.
///
/// # Errors
/// Never for plain text and numbers; what the encoder says is passed on.
pub(crate) fn head<'a>(
    metadata: &BTreeMap<String, String>,
    tensors: impl Iterator<Item = Described<'a>>,
) -> io::Result<Vec<u8>> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::to_value(metadata)?);
    let mut end = 0;
    for Described { name, kind, shape, len } in tensors {
        let start = end;
        end += len;
        let described =
            serde_json::json!({ "dtype": kind, "shape": shape, "data_offsets": [start, end] });
        header.insert(name.into(), described);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes(), &header[..]].concat())
}
