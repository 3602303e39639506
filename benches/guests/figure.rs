//! A figure: cases, each with arms that were measured in turns, and what may be concluded from them.
//!
//! Decides how two arms are compared: by the ratios within each block, of which the runs stand beside one another in time, and
//! an interval for their median out of those blocks drawn anew (bootstrap). Knows nothing of guests.

use fastrand::Rng;

/// What is measured of it, and in what unit.
pub struct Figure {
    /// For a file and a heading.
    pub name: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    /// What the cases differ in.
    pub axis: &'static str,
    pub cases: Vec<Case>,
    /// The arm that the others are held against, if they are.
    pub against: Option<&'static str>,
    /// The arm that nobody can be better than, if there is one.
    pub floor: Option<&'static str>,
    /// What limits it, and how it was measured, in a sentence or two.
    pub note: &'static str,
}

impl Figure {
    /// One whose arms are not held against one another: each stands for itself.
    pub fn plain(
        name: &'static str,
        title: &'static str,
        unit: &'static str,
        axis: &'static str,
        note: &'static str,
    ) -> Self {
        Self { name, title, unit, axis, cases: Vec::new(), against: None, floor: None, note }
    }
}

/// Measures a case at each place on the axis. What it gives goes to one figure each.
pub fn measured(
    mut figures: Vec<Figure>,
    places: &[u32],
    measure: impl Fn(u32) -> Vec<Vec<Samples>>,
) -> Vec<Figure> {
    for place in places {
        for (figure, arms) in figures.iter_mut().zip(measure(*place)) {
            figure.cases.push(Case { at: f64::from(*place), arms });
        }
    }
    figures
}

/// One set of runs.
pub struct Case {
    /// Where it is on the axis.
    pub at: f64,
    pub arms: Vec<Samples>,
}

/// What one arm came to.
#[derive(Clone)]
pub struct Samples {
    pub arm: &'static str,
    /// Both runs of each block.
    pub blocks: Vec<[f64; 2]>,
}

impl Samples {
    /// What was looked at once only.
    pub fn once(arm: &'static str, value: f64) -> Self {
        Self { arm, blocks: vec![[value, value]] }
    }

    /// The middle one of all runs.
    pub fn median(&self) -> f64 {
        median(self.blocks.iter().flatten().copied().collect())
    }
}

/// A ratio and the interval that it lies in, nineteen times out of twenty.
pub struct Ratio {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Case {
    pub fn arm(&self, name: &str) -> Option<&Samples> {
        self.arms.iter().find(|samples| samples.arm == name)
    }

    /// How many times as much an arm takes as another.
    pub fn ratio(&self, arm: &str, to: &str) -> Option<Ratio> {
        self.ratio_above(arm, to, None)
    }

    /// The same for what each adds to a floor.
    pub fn ratio_above(&self, arm: &str, to: &str, floor: Option<&str>) -> Option<Ratio> {
        let (arm, to) = (self.arm(arm)?, self.arm(to)?);
        let floor = floor.and_then(|floor| self.arm(floor)).map_or(0.0, Samples::median);
        // What does not rise above the floor cannot be told from it.
        let above = |block: &[f64; 2]| (block.iter().sum::<f64>() / 2.0 - floor).max(f64::EPSILON);
        let logs: Vec<f64> =
            arm.blocks.iter().zip(&to.blocks).map(|(one, other)| (above(one) / above(other)).ln()).collect();
        Some(interval(&logs))
    }
}

fn interval(logs: &[f64]) -> Ratio {
    const DRAWS: usize = 2000;
    let mut dice = Rng::with_seed(1);
    let mut draw = || median((0..logs.len()).map(|_| logs[dice.usize(..logs.len())]).collect());
    let mut medians: Vec<f64> = (0..DRAWS).map(|_| draw()).collect();
    medians.sort_by(f64::total_cmp);
    let at = |part: usize| medians[part * (DRAWS - 1) / 1000].exp();
    Ratio { median: median(logs.to_vec()).exp(), low: at(25), high: at(975) }
}

/// The middle one, or what is halfway between the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) { f64::midpoint(values[half - 1], values[half]) } else { values[half] }
}
