//! From a picture of any size to a square one: the shorter side to the job's, then the centre of the longer, as
//! torchvision's `Resize` and `CenterCrop`, with the antialiased bilinear filter of both Pillow and torchvision.

use crate::data::picture::Picture;

/// `[3][side][side]` of a picture.
pub fn square(picture: &Picture, side: usize) -> Vec<u8> {
    let &Picture { width, height, ref rgb } = picture;
    let shorter = width.min(height);
    let columns = taps(width, shorter, side);
    let rows = taps(height, shorter, side);
    // Only what is seen of a row, and only the rows that are.
    let seen = rows.first().map_or(0, |tap| tap.first)
        ..rows.iter().map(|tap| tap.first + tap.weights.len()).max().unwrap_or(0);
    let mut narrow = Vec::with_capacity(seen.len() * side * 3);
    for y in seen.clone() {
        let row = &rgb[y * width * 3..][..width * 3];
        for Tap { first, weights } in &columns {
            for channel in 0..3 {
                let values = row[3 * first + channel..].iter().step_by(3);
                narrow.push(values.zip(weights).map(|(&v, w)| f32::from(v) * w).sum::<f32>());
            }
        }
    }
    let mut planes = vec![0; 3 * side * side];
    for (y, Tap { first, weights }) in rows.iter().enumerate() {
        for x in 0..side {
            for channel in 0..3 {
                let start = ((first - seen.start) * side + x) * 3 + channel;
                let values = narrow[start..].iter().step_by(3 * side);
                let value: f32 = values.zip(weights).map(|(v, w)| v * w).sum();
                planes[(channel * side + y) * side + x] = value.round().clamp(0.0, 255.0) as u8;
            }
        }
    }
    planes
}

/// What an output value is made of.
struct Tap {
    first: usize,
    weights: Vec<f32>,
}

/// The filter along one axis of `len` values that is resized as `shorter` becomes `side`, for the `side` values in
/// its middle.
fn taps(len: usize, shorter: usize, side: usize) -> Vec<Tap> {
    let resized = (side * len / shorter).max(side);
    let rest = resized - side;
    // Half a pixel is rounded to the even one, as Python's round does for torchvision.
    let offset = rest / 2 + rest % 2 * (rest / 2 % 2);
    let scale = len as f64 / resized as f64;
    // Where the picture shrinks, the filter covers every source pixel: no aliasing.
    let support = scale.max(1.0);
    let tap = |index: usize| {
        let centre = (index as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(len);
        let weight = |at: usize| (1.0 - ((at as f64 + 0.5 - centre) / support).abs()).max(0.0);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        Tap { first, weights: weights.iter().map(|weight| (weight / sum) as f32).collect() }
    };
    (offset..offset + side).map(tap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize, value: impl Fn(usize, usize, usize) -> u8) -> Picture {
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let rgb = pixels.flat_map(|(x, y)| [0, 1, 2].map(|c| value(x, y, c))).collect();
        Picture { width, height, rgb }
    }

    #[test]
    fn a_picture_of_the_size_stays_as_it_is() {
        let value = |x: usize, y: usize, c: usize| (7 * x + 13 * y + 31 * c) as u8;
        let planes = square(&picture(32, 32, value), 32);
        for (at, &byte) in planes.iter().enumerate() {
            assert_eq!(byte, value(at % 32, at / 32 % 32, at / 1024), "{at}");
        }
    }

    #[test]
    fn shrinking_is_the_mean_and_the_longer_side_is_cropped_to_its_centre() {
        // Stripes that a filter without antialiasing would take for grey or white.
        let stripes = square(&picture(320, 320, |x, _, _| if x % 2 == 0 { 0 } else { 255 }), 32);
        assert!(stripes.iter().all(|&byte| (124..=131).contains(&byte)));
        let wide = square(&picture(96, 32, |x, _, _| if x / 32 == 1 { 200 } else { 10 }), 32);
        assert!(wide.iter().all(|&byte| byte == 200));
        let tall =
            square(&picture(64, 6400, |_, y, _| if y.abs_diff(3200) <= 40 { 99 } else { 0 }), 32);
        assert!(tall.iter().all(|&byte| byte == 99));
        // A line of pixels: what is not seen is not computed.
        assert_eq!(square(&picture(30_000, 1, |_, _, c| c as u8), 32).len(), 3072);
    }

    #[test]
    fn sizes_change_as_in_pillow() {
        // Image.fromarray(ramp).resize((8, 8), Image.BILINEAR), first row.
        let planes = square(&picture(4, 4, |x, _, _| 40 * x as u8), 8);
        assert_eq!(planes[..8], [0, 10, 30, 50, 70, 90, 110, 120]);
        // resize((42, 32), Image.BILINEAR) of 100 x 75 pixels, then the 32 columns from 5 on.
        let steep = square(&picture(100, 75, |x, y, _| (x * 7 + y * 13) as u8), 32);
        let near = |found: &[u8], expected: [u8; 8]| {
            let far = found.iter().zip(expected).map(|(found, want)| found.abs_diff(want)).max();
            assert!(far <= Some(1), "{found:?} instead of {expected:?}");
        };
        near(&steep[..8], [99, 116, 133, 149, 166, 183, 199, 216]);
        near(&steep[17 * 32 + 20..][..8], [181, 197, 214, 225, 189, 70, 31, 41]);
    }
}
