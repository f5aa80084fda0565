//! Length-prefixed frames in a byte stream; every length is bounded before anything is kept.
//!
//! ```text
//! message  u32 length | 0 | postcard bytes
//! chunk    u32 length | 1 | u64 step | u64 offset | values
//! ```
//! All integers little-endian; the length counts what follows the kind.

/// Most bytes of values in a chunk: sixteen records of TLS, so that a header costs nothing, and little enough that a
/// peer's claim of a length reserves no memory that matters.
pub const CHUNK_LEN_MAX: usize = 256 << 10;
/// Most bytes of a message: evidence with collateral.
pub(crate) const MESSAGE_LEN_MAX: usize = 256 << 10;
/// Bytes before the payload.
pub(crate) const HEAD_LEN: usize = 5;
/// Bytes before the values of a chunk.
const CHUNK_HEAD_LEN: usize = 16;
/// Most bytes of a whole frame.
pub(crate) const FRAME_LEN_MAX: usize = HEAD_LEN + CHUNK_HEAD_LEN + CHUNK_LEN_MAX;

/// A complete frame at the front of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// Values of a flat buffer.
    Chunk { step: u64, offset: u64, data: &'a [u8] },
    /// An encoded message.
    Message(&'a [u8]),
}

/// Why a stream is no sequence of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A frame longer than its kind may be.
    TooLong { len: usize, max: usize },
    /// A chunk without its head.
    ShortChunk { len: usize },
    /// A kind that does not exist.
    Kind(u8),
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::TooLong { len, max } => write!(f, "frame of {len} bytes, at most {max}"),
            Self::ShortChunk { len } => write!(f, "chunk of {len} bytes has no head"),
            Self::Kind(kind) => write!(f, "frame of unknown kind {kind}"),
        }
    }
}

/// The frame at the front of `input` and its whole length; `None` while it is incomplete.
///
/// # Errors
/// As soon as the head shows a frame that cannot be.
pub(crate) fn parse(input: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some((head, rest)) = input.split_first_chunk::<HEAD_LEN>() else { return Ok(None) };
    let [a, b, c, d, kind] = *head;
    let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    let max = match kind {
        MESSAGE => MESSAGE_LEN_MAX,
        CHUNK => CHUNK_HEAD_LEN + CHUNK_LEN_MAX,
        other => return Err(FrameError::Kind(other)),
    };
    if len > max {
        return Err(FrameError::TooLong { len, max });
    }
    if kind == CHUNK && len < CHUNK_HEAD_LEN {
        return Err(FrameError::ShortChunk { len });
    }
    let Some(payload) = rest.get(..len) else { return Ok(None) };
    let frame = match payload.split_first_chunk::<8>() {
        Some((step, rest)) if kind == CHUNK => match rest.split_first_chunk::<8>() {
            Some((offset, data)) => Frame::Chunk {
                step: u64::from_le_bytes(*step),
                offset: u64::from_le_bytes(*offset),
                data,
            },
            None => return Err(FrameError::ShortChunk { len }),
        },
        _ => Frame::Message(payload),
    };
    Ok(Some((frame, HEAD_LEN.saturating_add(len))))
}

/// The head of a message frame.
pub(crate) fn message_head(len: usize) -> [u8; HEAD_LEN] {
    assert!(len <= MESSAGE_LEN_MAX, "message of {len} bytes");
    head(len, MESSAGE)
}

/// The head of a chunk frame, up to its values.
pub(crate) fn chunk_head(step: u64, offset: u64, len: usize) -> [u8; HEAD_LEN + CHUNK_HEAD_LEN] {
    assert!(len <= CHUNK_LEN_MAX, "chunk of {len} bytes");
    let mut bytes = [0; HEAD_LEN + CHUNK_HEAD_LEN];
    bytes[..HEAD_LEN].copy_from_slice(&head(CHUNK_HEAD_LEN + len, CHUNK));
    bytes[HEAD_LEN..HEAD_LEN + 8].copy_from_slice(&step.to_le_bytes());
    bytes[HEAD_LEN + 8..].copy_from_slice(&offset.to_le_bytes());
    bytes
}

const MESSAGE: u8 = 0;
const CHUNK: u8 = 1;

fn head(len: usize, kind: u8) -> [u8; HEAD_LEN] {
    let [a, b, c, d] = u32::try_from(len).expect("bounded above").to_le_bytes();
    [a, b, c, d, kind]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_frame_waits_for_more() {
        let mut bytes = chunk_head(7, 4096, 3).to_vec();
        bytes.extend([1, 2, 3]);
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len]), Ok(None), "{len} bytes");
        }
        let frame = Frame::Chunk { step: 7, offset: 4096, data: &[1, 2, 3] };
        bytes.push(99);
        assert_eq!(parse(&bytes), Ok(Some((frame, bytes.len() - 1))));
    }

    #[test]
    fn lengths_and_kinds_out_of_bounds_are_refused_from_the_head_alone() {
        let long = [&u32::MAX.to_le_bytes()[..], &[MESSAGE]].concat();
        assert!(matches!(parse(&long), Err(FrameError::TooLong { .. })));
        assert_eq!(parse(&[0, 0, 0, 0, 2]), Err(FrameError::Kind(2)));
        assert_eq!(parse(&[15, 0, 0, 0, CHUNK]), Err(FrameError::ShortChunk { len: 15 }));
    }
}
