//! A small image set that the program draws itself: ten coloured shapes in CIFAR-10's format.

use crate::data::cifar::RECORD_LEN;
use crate::job::rng::Stream;
use crate::job::shape::Shape;

const SIDE: usize = Shape::CIFAR.side;
const COLOURS: usize = Shape::CIFAR.channels;
const CLASSES: usize = Shape::CIFAR.classes;

/// `count` records, the classes in turn. Equal seeds give equal images.
pub fn records(seed: u64, count: usize) -> Vec<u8> {
    (0..count as u64).flat_map(|index| record(seed, index)).collect()
}

fn record(seed: u64, index: u64) -> Vec<u8> {
    let class = (index % CLASSES as u64) as u8;
    let shape = Stream::new(seed, "shape");
    let noise = Stream::new(seed, "noise");
    let part = |which: u64| shape.uniform(16 * index + which);
    let centre = [0, 1].map(|axis| 16.0 + 10.0 * (part(axis) - 0.5));
    let size = 6.0 + 5.0 * part(2);
    let grey = 100.0 * part(3);
    let ground: [f32; COLOURS] = std::array::from_fn(|c| grey + 20.0 * part(4 + c as u64));
    // Each class has its part of the colour circle: shape alone takes hours to learn.
    let figure = colour((f32::from(class) + 0.6 * (part(7) - 0.5)) / CLASSES as f32, part(8));
    let mut record = vec![0; RECORD_LEN];
    record[0] = class;
    for y in 0..SIDE {
        for x in 0..SIDE {
            let (dy, dx) = (y as f32 - centre[0], x as f32 - centre[1]);
            let inside = is_inside(class, dx / size, dy / size);
            let grain = 40.0 * (noise.uniform((index << 10) + (y * SIDE + x) as u64) - 0.5);
            for c in 0..COLOURS {
                let paint = if inside { figure[c] } else { ground[c] };
                record[1 + (c * SIDE + y) * SIDE + x] = (paint + grain).clamp(0.0, 255.0) as u8;
            }
        }
    }
    record
}

/// Red, green and blue of a hue in 0..1 (the colour circle), brighter or darker.
fn colour(hue: f32, brightness: f32) -> [f32; COLOURS] {
    std::array::from_fn(|c| {
        let distance = (hue * 6.0 - 2.0 * c as f32).rem_euclid(6.0);
        let share = (2.0 - distance.min(6.0 - distance)).clamp(0.0, 1.0);
        (150.0 + 100.0 * brightness) * (0.15 + 0.85 * share)
    })
}

/// Whether a point, relative to centre and size, belongs to the class's shape.
fn is_inside(class: u8, x: f32, y: f32) -> bool {
    let radius = x.hypot(y);
    let square = x.abs().max(y.abs());
    let stripe = |t: f32| (t * 1.5).rem_euclid(1.0) < 0.5;
    match class {
        0 => radius < 1.0,
        1 => square < 0.9,
        2 => square < 1.1 && x.abs().min(y.abs()) < 0.3,
        3 => (0.6..1.1).contains(&radius),
        4 => y.abs() < 0.9 && x.abs() < (y + 0.9) * 0.6,
        5 => square < 1.1 && stripe(y),
        6 => square < 1.1 && stripe(x),
        7 => square < 1.1 && stripe(x + y),
        8 => square < 1.1 && (stripe(x) == stripe(y)),
        _ => (0.6..1.0).contains(&square),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::cifar;

    #[test]
    fn drawings_are_valid_balanced_and_repeatable() {
        let bytes = records(1, 40);
        assert_eq!(bytes, records(1, 40));
        assert_ne!(bytes, records(2, 40));
        let set = cifar::from_records(bytes).expect("valid records");
        assert!(
            (0..CLASSES).all(|class| (0..40).filter(|&i| set.label(i) == class as u8).count() == 4)
        );
    }
}
