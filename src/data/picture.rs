//! `Picture`: one PNG or JPEG as red, green and blue bytes, upright, within bounds.
//!
//! What a file is, its first bytes say, not its name. Grey becomes three equal channels, 16 bits their upper 8,
//! and an alpha channel is left out, as Pillow's `convert("RGB")` does; EXIF's orientation is applied. CMYK and
//! animations are refused: which colours and which frame are meant would be guessed.

use std::fmt;
use std::io::Cursor;

use png::{ColorType, Transformations};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// A picture in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height][width][3]`: red, green, blue.
    pub rgb: Vec<u8>,
}

/// Largest width and height, refused before anything is allocated for them.
pub const SIDE_MAX: usize = 32_768;
/// Most pixels, 300 MiB as a decoder has them: cameras and scanners make fewer, slides of pathology are cut into tiles.
pub const PIXELS_MAX: usize = 100 << 20;

/// Why a picture cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum PictureError {
    /// It has so many frames.
    Animated(u32),
    /// Its colours are for print.
    Cmyk,
    /// The decoder's reason.
    Damaged(String),
    /// The file has no bytes.
    NoBytes,
    /// Width and height that it claims.
    TooLarge(u64, u64),
    /// It ends before its picture does.
    Truncated,
    /// It is something else, by its first bytes.
    Type(&'static str),
}

impl fmt::Display for PictureError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Animated(frames) => {
                write!(f, "an animation of {frames} frames; a file for the one that is meant")
            }
            Self::Cmyk => write!(f, "CMYK colours, for print; convert it to RGB"),
            Self::Damaged(why) => write!(f, "{why}"),
            Self::NoBytes => write!(f, "the file is empty"),
            Self::TooLarge(width, height) => write!(
                f,
                "{width} x {height} pixels; at most {SIDE_MAX} on a side and {PIXELS_MAX} in all"
            ),
            Self::Truncated => write!(f, "truncated: the file ends before the picture does"),
            Self::Type(found) => write!(f, "{found}, expected PNG or JPEG"),
        }
    }
}

impl std::error::Error for PictureError {}

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
const JPEG: &[u8] = b"\xff\xd8\xff";
/// What else people keep pictures in.
const OTHERS: [(&[u8], &str); 8] = [
    (b"GIF8", "a GIF"),
    (b"RIFF", "a WebP"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"<", "markup"),
];

/// Reads a picture.
///
/// # Errors
/// When it is no whole PNG or JPEG, or larger than what is read.
pub fn decode(bytes: &[u8]) -> Result<Picture, PictureError> {
    match bytes {
        [] => Err(PictureError::NoBytes),
        _ if bytes.starts_with(PNG) => decode_png(bytes),
        _ if bytes.starts_with(JPEG) => decode_jpeg(bytes),
        _ => {
            let known = OTHERS.iter().find(|(magic, _)| bytes.starts_with(magic));
            Err(PictureError::Type(known.map_or("an unknown format", |(_, name)| name)))
        }
    }
}

fn check_size(width: u64, height: u64) -> Result<(), PictureError> {
    let fits = |side: u64| (1..=SIDE_MAX as u64).contains(&side);
    match fits(width) && fits(height) && width * height <= PIXELS_MAX as u64 {
        true => Ok(()),
        false => Err(PictureError::TooLarge(width, height)),
    }
}

fn decode_png(bytes: &[u8]) -> Result<Picture, PictureError> {
    let limits = png::Limits { bytes: 8 * PIXELS_MAX };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(Transformations::normalize_to_color8());
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(damaged_png)?;
    check_size(header.width.into(), header.height.into())?;
    let mut reader = decoder.read_info().map_err(damaged_png)?;
    if let Some(animation) = reader.info().animation_control()
        && animation.num_frames > 1
    {
        return Err(PictureError::Animated(animation.num_frames));
    }
    let len = reader.output_buffer_size().ok_or(PictureError::Truncated)?;
    let mut pixels = vec![0; len];
    let frame = reader.next_frame(&mut pixels).map_err(damaged_png)?;
    // The checksums of what follows the pixels, and the end itself.
    reader.finish().map_err(damaged_png)?;
    let orientation = reader.info().exif_metadata.as_deref().map_or(1, orientation);
    pixels.truncate(frame.buffer_size());
    let rgb = match frame.color_type {
        ColorType::Grayscale => spread(&pixels, 1),
        ColorType::GrayscaleAlpha => spread(&pixels, 2),
        ColorType::Rgb | ColorType::Indexed => pixels,
        ColorType::Rgba => pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
    };
    let (width, height) = (frame.width as usize, frame.height as usize);
    Ok(upright(Picture { width, height, rgb }, orientation))
}

fn damaged_png(error: png::DecodingError) -> PictureError {
    match error {
        png::DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            PictureError::Truncated
        }
        error => PictureError::Damaged(format!("no valid PNG: {error}")),
    }
}

/// Three equal channels of the first of every `step` bytes.
fn spread(grey: &[u8], step: usize) -> Vec<u8> {
    grey.iter().step_by(step).flat_map(|&value| [value; 3]).collect()
}

fn decode_jpeg(bytes: &[u8]) -> Result<Picture, PictureError> {
    let damaged =
        |error: &dyn fmt::Debug| PictureError::Damaged(format!("no valid JPEG: {error:?}"));
    // The decoder's own limits refuse by a message of theirs; ours, below, has both numbers.
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .set_strict_mode(true);
    let mut decoder = JpegDecoder::new_with_options(Cursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| damaged(&error))?;
    let (width, height) = decoder.dimensions().ok_or(PictureError::Truncated)?;
    check_size(width as u64, height as u64)?;
    let (colours, channels) = match decoder.input_colorspace() {
        Some(ColorSpace::CMYK | ColorSpace::YCCK) => return Err(PictureError::Cmyk),
        Some(ColorSpace::Luma) => (ColorSpace::Luma, 1),
        _ => (ColorSpace::RGB, 3),
    };
    if !ends(bytes) {
        return Err(PictureError::Truncated);
    }
    decoder.set_options(options.jpeg_set_out_colorspace(colours));
    let pixels = decoder.decode().map_err(|error| damaged(&error))?;
    if pixels.len() != width * height * channels {
        return Err(PictureError::Truncated);
    }
    let rgb = if channels == 1 { spread(&pixels, 1) } else { pixels };
    let orientation = decoder.exif().map_or(1, |exif| orientation(exif));
    Ok(upright(Picture { width, height, rgb }, orientation))
}

/// Whether a JPEG has its end after its last scan begins: decoders fill up with grey what is missing. A thumbnail's
/// end stands before that.
fn ends(bytes: &[u8]) -> bool {
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|pair| pair == marker);
    last([0xff, 0xd9]) > last([0xff, 0xda])
}

/// EXIF's orientation, 1 to 8; 1 where none is told. TIFF 6.0, with the one tag that is looked for.
fn orientation(exif: &[u8]) -> u8 {
    let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    let find = || {
        let little = match exif.get(..4)? {
            b"II*\0" => true,
            b"MM\0*" => false,
            _ => return None,
        };
        let word = |at: usize| {
            let bytes = exif.get(at..at.checked_add(2)?)?.try_into().ok()?;
            Some(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
        };
        let bytes = exif.get(4..8)?.try_into().ok()?;
        let table = if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
        let table = table as usize;
        let entries = usize::from(word(table)?);
        let at = (0..entries)
            .map(|entry| table + 2 + 12 * entry)
            .find(|&at| word(at) == Some(ORIENTATION))?;
        u8::try_from(word(at + 8)?).ok().filter(|value| (1..=8).contains(value))
    };
    find().unwrap_or(1)
}

/// EXIF's tag.
const ORIENTATION: u16 = 0x0112;

/// Turns and mirrors as the orientation says.
fn upright(picture: Picture, orientation: u8) -> Picture {
    if orientation == 1 {
        return picture;
    }
    let Picture { width, height, rgb } = picture;
    let swaps = orientation >= 5;
    let (w, h) = if swaps { (height, width) } else { (width, height) };
    let mut turned = Vec::with_capacity(rgb.len());
    for y in 0..h {
        for x in 0..w {
            // Where the pixel at (x, y) of the upright picture is in the file.
            let (column, row) = match orientation {
                2 => (width - 1 - x, y),
                3 => (width - 1 - x, height - 1 - y),
                4 => (x, height - 1 - y),
                5 => (y, x),
                6 => (y, height - 1 - x),
                7 => (width - 1 - y, height - 1 - x),
                _ => (width - 1 - y, x),
            };
            turned.extend_from_slice(&rgb[3 * (row * width + column)..][..3]);
        }
    }
    Picture { width: w, height: h, rgb: turned }
}

/// Fuzzing entry: what decodes has all its pixels and is within bounds.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    if let Ok(Picture { width, height, rgb }) = decode(data) {
        assert!(width * height <= PIXELS_MAX);
        assert_eq!(rgb.len(), 3 * width * height);
    }
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
