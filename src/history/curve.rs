//! Loss, learning rate and time over steps, thinned to a bounded number of points.

use serde::{Deserialize, Serialize};

/// Most points that are kept; a chart is some hundreds of pixels wide.
pub const POINTS_MAX: usize = 2048;

/// The curve of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// Steps that are averaged into one point, a power of two.
    width: u64,
    points: Vec<Point>,
}

/// Some steps, or one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// The first of its steps.
    pub step: u64,
    /// How many steps are in it.
    pub count: u64,
    /// Mean loss.
    pub loss: f64,
    /// Mean learning rate.
    pub rate: f64,
    /// Seconds of all of them.
    pub seconds: f64,
    /// Images of all of them.
    pub images: u64,
}

impl Point {
    /// One step.
    pub fn step(step: u64, loss: f32, rate: f32, seconds: f64, images: u64) -> Self {
        Self { step, count: 1, loss: loss.into(), rate: rate.into(), seconds, images }
    }

    fn merge(&mut self, next: &Self) {
        let count = self.count.saturating_add(next.count).max(1);
        let share = next.count as f64 / count as f64;
        self.loss += (next.loss - self.loss) * share;
        self.rate += (next.rate - self.rate) * share;
        self.seconds += next.seconds;
        self.images = self.images.saturating_add(next.images);
        self.count = count;
    }
}

impl Curve {
    /// Adds the next step. A step that is computed again after a restart replaces what it was.
    pub fn push(&mut self, point: Point) {
        self.width = self.width.max(1);
        let is_new = |last: &Point| last.step.saturating_add(last.count) <= point.step;
        while self.points.last().is_some_and(|last| !is_new(last)) {
            self.points.pop();
        }
        match self.points.last_mut() {
            Some(last) if last.count < self.width => last.merge(&point),
            _ => self.points.push(point),
        }
        if self.points.len() > POINTS_MAX {
            self.halve();
        }
    }

    /// Pairs of neighbours become one point each.
    fn halve(&mut self) {
        self.width *= 2;
        let mut kept = 0;
        for at in (0..self.points.len()).step_by(2) {
            let mut point = self.points[at];
            if let Some(next) = self.points.get(at + 1) {
                point.merge(next);
            }
            self.points[kept] = point;
            kept += 1;
        }
        self.points.truncate(kept);
    }

    /// The points, in the order of steps.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Mean loss of about the last `steps` steps.
    pub fn recent_loss(&self, steps: u64) -> Option<f64> {
        let mut sum: Option<Point> = None;
        for point in self.points.iter().rev() {
            match &mut sum {
                None => sum = Some(*point),
                Some(sum) if sum.count < steps => sum.merge(point),
                Some(_) => break,
            }
        }
        sum.map(|sum| sum.loss)
    }

    /// Images and seconds of all steps but the first, which waits for workers.
    pub fn throughput(&self) -> Option<f64> {
        let steady = self.points.get(1..).filter(|points| !points.is_empty())?;
        let seconds: f64 = steady.iter().map(|point| point.seconds).sum();
        let images: u64 = steady.iter().map(|point| point.images).fold(0, u64::saturating_add);
        (seconds > 0.0).then_some(images as f64 / seconds)
    }

    pub(super) fn is_bounded(&self) -> bool {
        self.points.len() <= POINTS_MAX
            && self.width <= 1 << 40
            && self.points.iter().all(|point| point.count >= 1 && point.count <= 1 << 40)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(steps: u64) -> Curve {
        let mut curve = Curve::default();
        (0..steps).for_each(|step| curve.push(Point::step(step, step as f32, 0.5, 0.25, 2)));
        curve
    }

    #[test]
    fn thinning_keeps_every_step_once() {
        for steps in [1, 2, 2048, 2049, 100_000] {
            let curve = curve(steps);
            assert!(curve.points().len() <= POINTS_MAX && curve.is_bounded());
            assert!(curve.points().len() as u64 >= steps.min(POINTS_MAX as u64 / 2));
            let mut next = 0;
            for point in curve.points() {
                assert_eq!(point.step, next);
                let mean = point.step as f64 + (point.count - 1) as f64 / 2.0;
                assert!((point.loss - mean).abs() < 1e-6 * steps as f64, "{point:?}");
                next += point.count;
            }
            assert_eq!(next, steps);
            let images: u64 = curve.points().iter().map(|point| point.images).sum();
            assert_eq!(images, 2 * steps);
        }
    }

    #[test]
    fn a_restart_goes_on_from_its_checkpoint() {
        let mut curve = curve(10);
        curve.push(Point::step(6, 60.0, 0.5, 0.25, 2));
        let steps: Vec<u64> = curve.points().iter().map(|point| point.step).collect();
        assert_eq!(steps, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(curve.points()[6].loss, 60.0);
        assert_eq!(curve.recent_loss(1), Some(60.0));
        assert_eq!(curve.throughput(), Some(8.0));
    }
}
