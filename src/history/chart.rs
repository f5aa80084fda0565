//! Charts as inline SVG: lines over steps, bars of shares, a matrix.

use std::fmt::Write as _;

/// Width and height of a line chart in its own units; the page scales it.
const SIZE: (f64, f64) = (640.0, 240.0);
/// Room for labels: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (56.0, 16.0, 14.0, 34.0);
/// Labels of an axis, about.
const TICKS: f64 = 5.0;

/// What lies between two labels of a time, in seconds.
const TIMES: [f64; 16] = [
    1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10_800.0, 43_200.0,
    86_400.0, 604_800.0,
];

/// A line of a chart.
pub struct Line {
    /// What it shows; empty where the chart's title says it.
    pub name: String,
    /// Position and value, in the order of positions.
    pub points: Vec<(f64, f64)>,
}

/// What an axis is about.
pub struct Axes<'a> {
    /// What the chart shows, for who cannot see it.
    pub title: &'a str,
    /// Name of the horizontal axis.
    pub x: &'a str,
    /// Values that the vertical axis has at least.
    pub least: Option<(f64, f64)>,
    /// How a value is shown.
    pub shown: fn(f64) -> String,
}

/// Text as it may stand in HTML.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

/// Lines over a common horizontal axis. Values that are no numbers leave gaps.
pub fn lines(axes: &Axes, lines: &[Line]) -> String {
    let finite = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite();
    let points = || lines.iter().flat_map(|line| line.points.iter().filter(finite));
    let (low, high) = axes.least.unwrap_or((f64::INFINITY, f64::NEG_INFINITY));
    let y =
        Scale::new(points().map(|p| p.1).chain([low, high].into_iter().filter(|v| v.is_finite())));
    let x = Scale::tight(points().map(|p| p.0));
    let (left, right, top, bottom) = MARGIN;
    let across = |value: f64| left + x.share(value) * (SIZE.0 - left - right);
    let down = |value: f64| SIZE.1 - bottom - y.share(value) * (SIZE.1 - top - bottom);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\"><g class=\"grid\">",
        SIZE.0,
        SIZE.1,
        escape(axes.title)
    );
    for tick in y.ticks() {
        let at = down(tick);
        let _ = write!(
            svg,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            SIZE.0 - right,
            left - 8.0,
            at + 4.0,
            (axes.shown)(tick)
        );
    }
    let whole = |tick: &f64| tick.fract() == 0.0 && x.holds(*tick);
    for tick in x.ticks().into_iter().filter(whole) {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>",
            across(tick),
            SIZE.1 - bottom + 16.0
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" class=\"axis\">{}</text></g>",
        SIZE.0 - right,
        SIZE.1 - 4.0,
        escape(axes.x)
    );
    for (number, line) in lines.iter().enumerate() {
        let path: Vec<String> = line
            .points
            .iter()
            .filter(finite)
            .map(|(at, value)| format!("{:.1},{:.1}", across(*at), down(*value)))
            .collect();
        let title = escape(&line.name);
        let _ = match &path[..] {
            [] => Ok(()),
            [only] => {
                let (cx, cy) = only.split_once(',').expect("a pair");
                write!(svg, "<circle class=\"dot{number}\" cx=\"{cx}\" cy=\"{cy}\" r=\"3\"/>")
            }
            many => write!(
                svg,
                "<polyline class=\"line{number}\" points=\"{}\"><title>{title}</title></polyline>",
                many.join(" ")
            ),
        };
    }
    svg.push_str("</svg>");
    svg
}

/// A bar of parts that together are one, each at least named in a tooltip.
pub fn shares(parts: &[(&str, f64)]) -> String {
    let total: f64 = parts.iter().map(|part| part.1.max(0.0)).sum();
    let mut svg = String::from("<svg viewBox=\"0 0 640 26\" class=\"shares\" role=\"img\">");
    let mut at = 0.0;
    for (number, (name, seconds)) in parts.iter().enumerate() {
        let width = if total > 0.0 { seconds.max(0.0) / total * 640.0 } else { 0.0 };
        if !width.is_finite() {
            continue;
        }
        let percent = width / 6.4;
        let _ = write!(
            svg,
            "<rect class=\"part{number}\" x=\"{at:.1}\" y=\"0\" width=\"{width:.1}\" height=\"26\">\
             <title>{name}: {percent:.1} %</title></rect>"
        );
        if width > 40.0 {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"17\" text-anchor=\"middle\">{percent:.0} %</text>",
                at + width / 2.0
            );
        }
        at += width;
    }
    svg.push_str("</svg>");
    svg
}

/// What somebody did when, on a row of its own.
pub struct Row<'a> {
    /// Who.
    pub name: &'a str,
    /// From when to when it was there.
    pub spans: &'a [(f64, f64)],
    /// Moment, class and name of what happened to it.
    pub marks: Vec<(f64, &'static str, &'static str)>,
}

/// Rows over a common time from 0 to `end`.
pub fn rows(title: &str, end: f64, shown: fn(f64) -> String, rows: &[Row]) -> String {
    const ROW: f64 = 26.0;
    let (left, right) = (78.0, 12.0);
    let end = end.clamp(1.0, 1e12);
    let across = |at: f64| left + (at / end).clamp(0.0, 1.0) * (SIZE.0 - left - right);
    let height = ROW * rows.len() as f64 + 26.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {height}\" role=\"img\" class=\"rows\" aria-label=\"{}\"><g class=\"grid\">",
        SIZE.0,
        escape(title)
    );
    let step = TIMES.into_iter().find(|step| end / step <= TICKS + 1.0).unwrap_or(end / TICKS);
    for tick in (0..=TICKS as u32 + 1).map(|tick| f64::from(tick) * step).filter(|at| *at <= end) {
        let at = across(tick);
        let _ = write!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{:.1}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            height - 22.0,
            height - 6.0,
            shown(tick)
        );
    }
    for (number, row) in rows.iter().enumerate() {
        let top = number as f64 * ROW + 5.0;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" class=\"name\">{}</text>",
            left - 8.0,
            top + 12.5,
            escape(row.name)
        );
        for (from, to) in row.spans {
            let (from, to) = (across(*from), across(*to));
            // What is shorter than a point was there, too.
            let width = (to - from).max(1.0);
            let _ = write!(
                svg,
                "<rect class=\"span\" x=\"{from:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"16\" rx=\"2\"/>"
            );
        }
        for (at, class, name) in &row.marks {
            let at = across(*at);
            let _ = write!(
                svg,
                "<line class=\"mark {class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\">\
                 <title>{name}</title></line>",
                top - 3.0,
                top + 19.0
            );
        }
    }
    svg.push_str("</g></svg>");
    svg
}

/// Lowest and highest value of an axis, widened to round numbers.
struct Scale {
    low: f64,
    high: f64,
    step: f64,
}

impl Scale {
    /// From the lowest value to the highest.
    fn tight(values: impl Iterator<Item = f64> + Clone) -> Self {
        let wide = Self::new(values.clone());
        let (low, high) = values
            .fold((wide.high, wide.low), |(low, high), value| (low.min(value), high.max(value)));
        if low < high {
            Self { low: low.max(wide.low), high: high.min(wide.high), ..wide }
        } else {
            wide
        }
    }

    fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    fn new(values: impl Iterator<Item = f64>) -> Self {
        // Far from where a difference overflows.
        let values = values.map(|value| value.clamp(-1e30, 1e30));
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let (low, high) = match (low.is_finite(), high - low) {
            (false, _) => (0.0, 1.0),
            (true, span) if span > 0.0 && span.is_finite() => (low, high),
            (true, _) => (low - 0.5, low + 0.5),
        };
        // 1, 2 or 5 times a power of ten.
        let rough = (high - low) / TICKS;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|unit| unit * power)
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let step = if step.is_finite() && step > 0.0 { step } else { high - low };
        Self { low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    fn share(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// The round numbers on the axis; few, whatever the values.
    fn ticks(&self) -> Vec<f64> {
        let low = (self.low / self.step).floor() * self.step;
        let count = ((self.high - low) / self.step).ceil().clamp(0.0, 16.0) as u32;
        (0..=count).map(|at| low + f64::from(at) * self.step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AXES: Axes =
        Axes { title: "t", x: "step", least: None, shown: |value| format!("{value}") };

    #[test]
    fn axes_end_at_round_numbers() {
        let scale = Scale::new([0.13, 2.41].into_iter());
        assert_eq!((scale.low, scale.step), (0.0, 0.5));
        assert_eq!(scale.ticks(), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
        let tight = Scale::tight([3.0, 109.0].into_iter());
        assert_eq!((tight.share(3.0), tight.share(109.0)), (0.0, 1.0));
        let ticks: Vec<f64> = tight.ticks().into_iter().filter(|tick| tight.holds(*tick)).collect();
        assert_eq!(ticks, [50.0, 100.0]);
        for odd in [vec![], vec![3.0], vec![f64::MAX, f64::MIN], vec![1e-300, 2e-300], vec![-0.0]] {
            let scale = Scale::new(odd.clone().into_iter());
            assert!(scale.ticks().len() <= 17, "{odd:?}");
            assert!(odd.iter().all(|value| (0.0..=1.0).contains(&scale.share(*value))), "{odd:?}");
        }
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let line = Line {
            name: "<a>".into(),
            points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, f64::INFINITY), (3.0, 2.0)],
        };
        let svg = lines(&AXES, &[line]);
        assert!(!svg.contains("NaN") && !svg.contains("inf") && svg.contains("&lt;a&gt;"));
        let points = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next());
        assert_eq!(points.map(|points| points.split(' ').count()), Some(2));
        assert!(!shares(&[("a", f64::NAN), ("b", 1.0)]).contains("NaN"));
    }
}
