//! Every kind of picture, whole and broken, with what becomes of it. `tests/pictures.py` made the files.

use super::*;

fn file(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/pictures/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).expect("a recorded picture")
}

/// The colours of the four quadrants, row by row.
fn quadrants(picture: &Picture) -> [[u8; 3]; 4] {
    let Picture { width, height, rgb } = picture;
    [(1, 1), (1, 3), (3, 1), (3, 3)].map(|(y, x)| {
        let at = y * height / 4 * width + x * width / 4;
        [0, 1, 2].map(|channel| rgb[3 * at + channel])
    })
}

const COLOURS: [[u8; 3]; 4] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255; 3]];
const GREYS: [[u8; 3]; 4] = [[50; 3], [100; 3], [150; 3], [200; 3]];

#[track_caller]
fn shows(name: &str, colours: [[u8; 3]; 4]) {
    let picture = decode(&file(name)).unwrap_or_else(|why| panic!("{name}: {why}"));
    assert_eq!((picture.width, picture.height, picture.rgb.len()), (32, 32, 3072), "{name}");
    for (found, expected) in quadrants(&picture).iter().flatten().zip(colours.iter().flatten()) {
        assert!(found.abs_diff(*expected) <= 6, "{name}: {:?}", quadrants(&picture));
    }
}

#[test]
fn every_kind_of_picture_is_read_upright() {
    for name in [
        "colour.jpg",
        "progressive.jpg",
        "subsampled.jpg",
        "colour.png",
        "palette.png",
        "alpha.png",
    ] {
        shows(name, COLOURS);
    }
    for name in ["grey.jpg", "grey.png", "deep.png"] {
        shows(name, GREYS);
    }
    for name in ["turned.jpg", "turned.png"] {
        shows(name, COLOURS);
    }
    for orientation in [2, 3, 4, 5, 7, 8] {
        shows(&format!("orientation{orientation}.png"), COLOURS);
    }
}

#[test]
fn what_is_no_still_picture_in_rgb_is_refused_by_name() {
    assert_eq!(decode(&[]), Err(PictureError::NoBytes));
    assert_eq!(decode(&file("cmyk.jpg")), Err(PictureError::Cmyk));
    assert_eq!(decode(&file("animated.png")), Err(PictureError::Animated(3)));
    assert_eq!(decode(&file("animated.gif")), Err(PictureError::Type("a GIF")));
    assert_eq!(decode(&file("colour.webp")), Err(PictureError::Type("a WebP")));
    assert_eq!(decode(b"<svg>"), Err(PictureError::Type("markup")));
    assert_eq!(decode(b"hello"), Err(PictureError::Type("an unknown format")));
    assert_eq!(decode(&[0; 4096]), Err(PictureError::Type("an unknown format")));
}

#[test]
fn a_picture_that_is_cut_off_is_an_error_wherever_that_is() {
    for name in
        ["colour.jpg", "progressive.jpg", "grey.jpg", "turned.jpg", "colour.png", "deep.png"]
    {
        let whole = file(name);
        for len in (0..whole.len() - 2).step_by(7).chain([whole.len() - 2, whole.len() - 1]) {
            assert!(decode(&whole[..len]).is_err(), "{name}: {len} of {} bytes", whole.len());
        }
    }
    let half = file("colour.jpg");
    let why = decode(&half[..half.len() - 2]).expect_err("no end").to_string();
    assert!(why.contains("truncated"), "{why}");
}

#[test]
fn damage_is_an_error_or_another_picture_but_never_a_panic() {
    for name in
        ["colour.jpg", "progressive.jpg", "cmyk.jpg", "turned.jpg", "colour.png", "palette.png"]
    {
        let whole = file(name);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            fuzz(&damaged);
        }
    }
    // PNG has checksums: there it is an error.
    let mut damaged = file("colour.png");
    let at = damaged.len() - 20;
    damaged[at] ^= 1;
    assert!(decode(&damaged).is_err());
}

/// The first bytes of a picture that claims to be so large.
fn claims_png(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut bytes = file("colour.png");
    bytes[12..29].copy_from_slice(&header);
    bytes[29..33].copy_from_slice(&crc32fast::hash(&header).to_be_bytes());
    bytes
}

fn claims_jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut bytes = file("colour.jpg");
    let frame = bytes.windows(2).position(|two| two == [0xff, 0xc0]).expect("a frame");
    bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    bytes
}

#[test]
fn giant_claims_are_refused_before_memory_is_taken() {
    assert_eq!(
        decode(&claims_png(100_000, 100_000)),
        Err(PictureError::TooLarge(100_000, 100_000))
    );
    assert_eq!(decode(&claims_png(32_768, 32_768)), Err(PictureError::TooLarge(32_768, 32_768)));
    assert_eq!(decode(&claims_png(1, 40_000)), Err(PictureError::TooLarge(1, 40_000)));
    assert_eq!(decode(&claims_jpeg(65_000, 65_000)), Err(PictureError::TooLarge(65_000, 65_000)));
    assert!(decode(&claims_png(0, 10)).is_err() && decode(&claims_jpeg(0, 10)).is_err());
    // Larger than what there are pixels for, and within bounds.
    assert!(decode(&claims_png(33, 4000)).is_err());
    let text = PictureError::TooLarge(100_000, 100_000).to_string();
    assert!(text.contains("100000 x 100000 pixels"), "{text}");
}

#[test]
fn orientation_is_one_of_eight_or_none() {
    assert_eq!(orientation(b""), 1);
    assert_eq!(orientation(b"II*\0\xff\xff\xff\xff"), 1);
    let entry = |value: u16| {
        let mut exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01".to_vec();
        exif.extend(value.to_be_bytes());
        exif
    };
    assert_eq!([6, 8, 9, 0, 0x0600].map(|value| orientation(&entry(value))), [6, 8, 1, 1, 1]);
}
