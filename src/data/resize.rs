//! From a picture of any size to a square one: the shorter side to the job's, then the centre of the longer, as
//! torchvision's `Resize` and `CenterCrop`, with the antialiased bilinear filter of both Pillow and torchvision.

use crate::data::picture::Picture;
use crate::job::{Augment, Job};

/// What is taken of a picture: its shorter side becomes `resized` long, and of that the centre is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The shorter side of the whole.
    pub resized: usize,
    /// Both sides of what is kept.
    pub kept: usize,
}

impl Cut {
    /// The shorter side becomes the image's.
    pub fn plain(side: usize) -> Self {
        Self { resized: side, kept: side }
    }

    /// The square that a job learns from: more of it where it says so, to see parts of that.
    pub fn to_learn(job: &Job) -> Self {
        match job.augment {
            Augment::Resized | Augment::Parts => Self::plain(margin(job.shape.side)),
            Augment::None | Augment::Standard => Self::plain(job.shape.side),
        }
    }

    /// What it is evaluated on, of the size in which a model that learned from parts has seen things.
    pub fn to_evaluate(job: &Job) -> Self {
        Self { kept: job.shape.side, ..Self::to_learn(job) }
    }
}

/// 8/7 of a side: 256 for 224, as torchvision's networks are evaluated.
fn margin(side: usize) -> usize {
    (8 * side + 3) / 7
}

/// A rectangle of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) top: usize,
    pub(super) left: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Part {
    /// A random one of an image of that height and width, as torchvision's `RandomResizedCrop` chooses it: 8 to 100 %
    /// of the area, its sides as 3 to 4 up to 4 to 3. `words` are those of each attempt.
    pub(super) fn random([rows, columns]: [usize; 2], words: impl Fn(usize) -> [u32; 4]) -> Self {
        let unit = |word: u32| f64::from(word) / (f64::from(u32::MAX) + 1.0);
        let (narrow, wide) = (0.75_f64.ln(), (4.0_f64 / 3.0).ln());
        for attempt in 0..ATTEMPTS {
            let [area, ratio, top, left] = words(attempt);
            let area = (rows * columns) as f64 * (0.08 + 0.92 * unit(area));
            let ratio = (narrow + (wide - narrow) * unit(ratio)).exp();
            let [height, width] =
                [area / ratio, area * ratio].map(|square| square.sqrt().round_ties_even() as usize);
            if (1..=rows).contains(&height) && (1..=columns).contains(&width) {
                let place = |word: u32, len: usize, of: usize| word as usize % (of - len + 1);
                let (top, left) = (place(top, height, rows), place(left, width, columns));
                return Self { top, left, height, width };
            }
        }
        Self::central([rows, columns])
    }

    /// The largest part in the middle that is not longer than 4 to 3 either way.
    fn central([rows, columns]: [usize; 2]) -> Self {
        let longest = |other: usize| ((other * 4) as f64 / 3.0).round_ties_even() as usize;
        let height = rows.min(longest(columns));
        let width = columns.min(longest(rows));
        Self { top: (rows - height) / 2, left: (columns - width) / 2, height, width }
    }

    /// This part of an image of that height and width, channel by channel, as one of `[3][side][side]`.
    pub(super) fn resize(
        self,
        planes: &[u8],
        [rows_in_all, of]: [usize; 2],
        side: usize,
    ) -> Vec<u8> {
        let Self { top, left, height, width } = self;
        let (columns, rows) = (taps(width, side), taps(height, side));
        let mut resized = Vec::with_capacity(3 * side * side);
        let mut narrow = vec![0.0_f32; height * side];
        for plane in planes.chunks_exact(rows_in_all * of) {
            for (y, narrow) in narrow.chunks_exact_mut(side).enumerate() {
                let row = &plane[(top + y) * of + left..][..width];
                for (value, Tap { first, weights }) in narrow.iter_mut().zip(&columns) {
                    let values = row[*first..].iter().zip(weights);
                    *value = values.map(|(&value, weight)| f32::from(value) * weight).sum();
                }
            }
            for Tap { first, weights } in &rows {
                for x in 0..side {
                    let values = narrow[first * side + x..].iter().step_by(side).zip(weights);
                    let value: f32 = values.map(|(value, weight)| value * weight).sum();
                    resized.push(value.round().clamp(0.0, 255.0) as u8);
                }
            }
        }
        resized
    }
}

/// Tries for a part that lies inside; after them it is the middle, as near to the whole as the ratios allow.
pub(super) const ATTEMPTS: usize = 10;

/// `[3][kept][kept]` of a picture.
pub fn square(picture: &Picture, Cut { resized, kept: side }: Cut) -> Vec<u8> {
    let &Picture { width, height, ref rgb } = picture;
    let shorter = width.min(height);
    let [columns, rows] = [width, height].map(|len| middle(len, shorter, resized, side));
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

/// The filter along one axis of `len` values that becomes `side` long.
fn taps(len: usize, side: usize) -> Vec<Tap> {
    middle(len, len, side, side)
}

/// The filter along one axis of `len` values that is resized as `shorter` becomes `target`, for the `side` values in
/// its middle.
fn middle(len: usize, shorter: usize, target: usize, side: usize) -> Vec<Tap> {
    let resized = (target * len / shorter).max(target);
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
        let planes = square(&picture(32, 32, value), Cut::plain(32));
        for (at, &byte) in planes.iter().enumerate() {
            assert_eq!(byte, value(at % 32, at / 32 % 32, at / 1024), "{at}");
        }
    }

    #[test]
    fn shrinking_is_the_mean_and_the_longer_side_is_cropped_to_its_centre() {
        // Stripes that a filter without antialiasing would take for grey or white.
        let stripes =
            square(&picture(320, 320, |x, _, _| if x % 2 == 0 { 0 } else { 255 }), Cut::plain(32));
        assert!(stripes.iter().all(|&byte| (124..=131).contains(&byte)));
        let wide =
            square(&picture(96, 32, |x, _, _| if x / 32 == 1 { 200 } else { 10 }), Cut::plain(32));
        assert!(wide.iter().all(|&byte| byte == 200));
        let tall = square(
            &picture(64, 6400, |_, y, _| if y.abs_diff(3200) <= 40 { 99 } else { 0 }),
            Cut::plain(32),
        );
        assert!(tall.iter().all(|&byte| byte == 99));
        // A line of pixels: what is not seen is not computed.
        assert_eq!(square(&picture(30_000, 1, |_, _, c| c as u8), Cut::plain(32)).len(), 3072);
    }

    #[test]
    fn sizes_change_as_in_pillow() {
        // Image.fromarray(ramp).resize((8, 8), Image.BILINEAR), first row.
        let planes = square(&picture(4, 4, |x, _, _| 40 * x as u8), Cut::plain(8));
        assert_eq!(planes[..8], [0, 10, 30, 50, 70, 90, 110, 120]);
        // resize((42, 32), Image.BILINEAR) of 100 x 75 pixels, then the 32 columns from 5 on.
        let steep = square(&picture(100, 75, |x, y, _| (x * 7 + y * 13) as u8), Cut::plain(32));
        let near = |found: &[u8], expected: [u8; 8]| {
            let far = found.iter().zip(expected).map(|(found, want)| found.abs_diff(want)).max();
            assert!(far <= Some(1), "{found:?} instead of {expected:?}");
        };
        near(&steep[..8], [99, 116, 133, 149, 166, 183, 199, 216]);
        near(&steep[17 * 32 + 20..][..8], [181, 197, 214, 225, 189, 70, 31, 41]);
    }

    /// Of a ramp from left to right, and of one from top to bottom, in the third channel their sum.
    fn ramps(side: usize) -> Vec<u8> {
        let value = |c: usize, y: usize, x: usize| [2 * x, 3 * y, x + y][c] as u8;
        let pixels = (0..side).flat_map(move |y| (0..side).map(move |x| (y, x)));
        (0..3).flat_map(|c| pixels.clone().map(move |(y, x)| value(c, y, x))).collect()
    }

    #[test]
    fn a_part_of_its_own_size_is_cut_and_others_are_resized_as_in_pillow() {
        let planes = ramps(73);
        let own = Part { top: 5, left: 9, height: 64, width: 64 }.resize(&planes, [73; 2], 64);
        for (c, y, x) in [(0, 0, 0), (0, 63, 63), (1, 10, 20), (2, 31, 7)] {
            let want = planes[(c * 73 + y + 5) * 73 + x + 9];
            assert_eq!(own[(c * 64 + y) * 64 + x], want, "{c} {y} {x}");
        }
        // Image.fromarray(ramp).crop((10, 4, 50, 24)).resize((64, 64), Image.BILINEAR): rows 0, 1, 2 and 63 of its
        // second channel, columns 0, 1, 2 and 63 of its first.
        let part = Part { top: 4, left: 10, height: 20, width: 40 }.resize(&planes, [73; 2], 64);
        let rows = [0, 1, 2, 63].map(|y| part[(64 + y) * 64 + 30]);
        let columns = [0, 1, 2, 63].map(|x| part[30 * 64 + x]);
        assert_eq!((rows, columns), ([12, 12, 13, 69], [20, 21, 22, 98]));
    }

    #[test]
    fn a_part_of_a_whole_picture_is_what_torchvision_makes_of_it() {
        let value = |c: usize, y: usize, x: usize| [2 * x, 3 * y, x + y][c] as u8;
        let pixels = (0..75).flat_map(move |y| (0..100).map(move |x| (y, x)));
        let planes = (0..3).flat_map(|c| pixels.clone().map(move |(y, x)| value(c, y, x)));
        let part = Part { top: 5, left: 30, height: 65, width: 60 };
        let part = part.resize(&planes.collect::<Vec<u8>>(), [75, 100], 64);
        // resized_crop(Image of the ramps, 5, 30, 65, 60, (64, 64)), which is Pillow's crop((30, 5, 90, 70)) and
        // resize((64, 64), BILINEAR): of its channels a row, a column and the diagonal.
        let row = [0, 1, 2, 31, 63].map(|x| part[20 * 64 + x]);
        let column = [0, 1, 2, 31, 63].map(|y| part[(64 + y) * 64 + 10]);
        let diagonal = [0, 17, 40, 63].map(|at| part[(128 + at) * 64 + at]);
        let found = row.into_iter().chain(column).chain(diagonal);
        let wanted = [60, 62, 64, 118, 178, 15, 18, 21, 109, 207, 35, 68, 113, 158];
        for (found, want) in found.zip(wanted) {
            assert!(found.abs_diff(want) <= 1, "{found} instead of {want}");
        }
    }

    #[test]
    fn parts_are_of_the_areas_and_ratios_that_torchvision_draws() {
        let stream = crate::job::rng::Stream::new(1, "parts");
        let [rows, columns] = [256, 400];
        let mut areas = Vec::new();
        for sample in 0..2000 {
            let part =
                Part::random([rows, columns], |attempt| stream.words(sample * 16 + attempt as u64));
            let Part { top, left, height, width } = part;
            assert!(top + height <= rows && left + width <= columns, "{part:?}");
            let ratio = width as f64 / height as f64;
            assert!((0.73..1.37).contains(&ratio), "{part:?}");
            areas.push((height * width) as f64 / (rows * columns) as f64);
        }
        assert!(areas.iter().all(|area| (0.078..=1.0).contains(area)));
        // Attempts that do not fit make large parts rarer: torchvision's own code gives a mean of 0.376.
        let mean = areas.iter().sum::<f64>() / areas.len() as f64;
        assert!((0.36..0.39).contains(&mean), "{mean}");
        // Sides that never fit: the whole, or the most of it in its middle.
        let never = |size| Part::random(size, |_| [u32::MAX, u32::MAX, 1, 1]);
        assert_eq!(never([64, 64]), Part { top: 0, left: 0, height: 64, width: 64 });
        assert_eq!(never([30, 100]), Part { top: 0, left: 30, height: 30, width: 40 });
        assert_eq!(never([301, 60]), Part { top: 110, left: 0, height: 80, width: 60 });
    }

    #[test]
    fn a_job_that_learns_from_parts_keeps_more_and_is_evaluated_on_the_centre() {
        let job = |side, augment| {
            let shape = crate::job::shape::Shape { side, ..Default::default() };
            Job { shape, augment, ..Job::default() }
        };
        for (side, kept) in [(224, 256), (64, 73)] {
            let job = job(side, Augment::Resized);
            assert_eq!(Cut::to_learn(&job), Cut::plain(kept));
            assert_eq!(Cut::to_evaluate(&job), Cut { resized: kept, kept: side });
        }
        let plain = job(64, Augment::Standard);
        assert_eq!([Cut::to_learn(&plain), Cut::to_evaluate(&plain)], [Cut::plain(64); 2]);
        let centre =
            square(&picture(96, 48, |x, y, c| [x, y, 0][c] as u8), Cut { resized: 48, kept: 32 });
        assert_eq!((centre[0], centre[31], centre[32 * 32]), (32, 63, 8));
    }
}
