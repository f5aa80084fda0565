//! The style sheet of the page, for light and for dark screens; what it colours can be read on both.

/// Its text.
pub(super) const STYLE: &str = include_str!("page.css");

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Values of a scheme by their names; a dark one has those of the light one where it says nothing else.
    type Scheme = BTreeMap<&'static str, &'static str>;

    fn schemes() -> [Scheme; 2] {
        let (light, rest) =
            STYLE.split_once("@media screen and (prefers-color-scheme:dark)").expect("dark");
        let dark = rest.split_once("}}").expect("its end").0;
        let read = |text: &'static str| -> Scheme {
            let entries = text.split("--").skip(1).filter_map(|entry| entry.split_once(':'));
            entries
                .map(|(name, value)| (name, value.split([';', '}']).next().expect("a value")))
                .collect()
        };
        let light = read(light);
        let mut both = light.clone();
        both.extend(read(dark));
        [light, both]
    }

    fn colour(text: &str) -> [f64; 3] {
        let digits = text.strip_prefix('#').expect("a colour");
        let width = digits.len() / 3;
        let part = |at: usize| {
            let part = &digits[at * width..(at + 1) * width];
            let value = u8::from_str_radix(&part.repeat(2 / width), 16).expect("digits");
            f64::from(value) / 255.0
        };
        [0, 1, 2].map(part)
    }

    /// The contrast of two colours, 1 to 21 (WCAG 2.2).
    fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
        let light = |colour: [f64; 3]| {
            let [red, green, blue] = colour.map(|part| match part <= 0.04045 {
                true => part / 12.92,
                false => ((part + 0.055) / 1.055).powf(2.4),
            });
            0.2126 * red + 0.7152 * green + 0.0722 * blue
        };
        let [a, b] = [a, b].map(light);
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    /// As `color-mix` puts a part of one colour over another.
    fn mixed(over: [f64; 3], under: [f64; 3], part: f64) -> [f64; 3] {
        [0, 1, 2].map(|at| part * over[at] + (1.0 - part) * under[at])
    }

    #[test]
    fn text_and_lines_have_contrast_on_light_and_dark_screens() {
        for scheme in schemes() {
            let of = |name: &str| colour(scheme[name]);
            let (back, ink) = (of("back"), of("ink"));
            for name in ["ink", "soft", "good", "warn", "c0"] {
                for under in ["back", "panel"] {
                    let found = contrast(of(name), of(under));
                    assert!(found >= 4.5, "{name} on {under}: {found:.2} in {scheme:?}");
                }
            }
            // Names of parts stand on bars of these colours, which are lines too.
            for name in ["c0", "c1", "c2", "c3", "c4", "c5"] {
                let found = contrast(back, of(name));
                assert!(found >= 4.5, "text on {name}: {found:.2} in {scheme:?}");
            }
            for (name, most) in [("c2", "hit"), ("c4", "miss")] {
                let part = scheme[most].strip_suffix('%').expect("a part");
                let part = part.parse::<f64>().expect("a number") / 100.0;
                let found = contrast(ink, mixed(of(name), back, part));
                assert!(found >= 4.5, "counts on {most}: {found:.2} in {scheme:?}");
            }
        }
    }
}
