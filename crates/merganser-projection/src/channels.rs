//! Scales and shifts of normalisation layers: y_i = γ_i x̂_i + β_i, least squares channel by channel.
//!
//! Each channel is a problem of one unknown (γ) or two (γ, β): G = Σ ω_t/n_t [[Σx̂², Σx̂], [Σx̂, n]] and C likewise. Without
//! a shift and with the inputs of the teachers this is the weighted mean of LOT Merging (arXiv 2505.23859, eq. 12).

use merganser_linalg::qp::{Constraint, minimise};
use merganser_linalg::{Matrix, Real};

use crate::error::shape;
use crate::moments::refused;
use crate::{Captured, Error, Note, Result, TaskCaptured};

/// Moments of a normalised input, channel by channel: Σ x̂², Σ x̂ and n.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelMoments {
    count: u64,
    square: Vec<f64>,
    sum: Vec<f64>,
}

impl ChannelMoments {
    /// Moments of no sample, for inputs of `channels` numbers.
    pub fn new(channels: usize) -> Self {
        Self {
            count: 0,
            square: vec![0.0; channels],
            sum: vec![0.0; channels],
        }
    }

    /// Moments known from elsewhere: n, Σ x̂² and Σ x̂.
    ///
    /// # Errors
    /// If the sizes differ, or a number is not finite or a square negative.
    pub fn from_parts(count: u64, square: Vec<f64>, sum: Vec<f64>) -> Result<Self> {
        if square.len() != sum.len() {
            return Err(shape("the sum of the channels", sum.len(), square.len()));
        }
        for x in square.iter().chain(&sum) {
            if !x.is_finite() {
                return Err(out_of_range("a channel's moment", *x, "finite"));
            }
        }
        if let Some(&x) = square.iter().find(|&&x| x < 0.0) {
            return Err(out_of_range("a sum of squares", x, "at least 0"));
        }
        Ok(Self { count, square, sum })
    }

    /// Adds samples: whole rows of x̂.
    ///
    /// # Errors
    /// If the data are no whole number of rows, or not finite.
    pub fn add_rows<T: Real>(&mut self, rows: &[T]) -> Result<()> {
        let n = whole_rows(rows, self.channels(), "the inputs")?;
        for row in rows.chunks_exact(self.channels()) {
            for ((square, sum), x) in self.square.iter_mut().zip(&mut self.sum).zip(row) {
                let x = x.to_f64();
                *square += x * x;
                *sum += x;
            }
        }
        self.count += n;
        Ok(())
    }

    /// Adds the moments of other samples.
    ///
    /// # Errors
    /// If they have another number of channels.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if other.channels() != self.channels() {
            return Err(shape(
                "channels of other moments",
                other.channels(),
                self.channels(),
            ));
        }
        add(&mut self.square, &other.square);
        add(&mut self.sum, &other.sum);
        self.count += other.count;
        Ok(())
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.square.len()
    }

    /// Samples.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Σ x̂² of every channel.
    pub fn square(&self) -> &[f64] {
        &self.square
    }

    /// Σ x̂ of every channel.
    pub fn sum(&self) -> &[f64] {
        &self.sum
    }
}

/// Moments of residual targets, channel by channel: Σ r x̂, Σ r and Σ r².
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelTargets {
    count: u64,
    cross: Vec<f64>,
    sum: Vec<f64>,
    energy: Vec<f64>,
}

impl ChannelTargets {
    /// Moments of no sample.
    pub fn new(channels: usize) -> Self {
        Self {
            count: 0,
            cross: vec![0.0; channels],
            sum: vec![0.0; channels],
            energy: vec![0.0; channels],
        }
    }

    /// Adds samples: whole rows of residual targets and of x̂ in the merged network, as many of each.
    ///
    /// # Errors
    /// If the data are no whole rows, their numbers differ, or they are not finite.
    pub fn add_rows<T: Real>(&mut self, targets: &[T], inputs: &[T]) -> Result<()> {
        let n = whole_rows(targets, self.cross.len(), "the targets")?;
        if whole_rows(inputs, self.cross.len(), "the inputs")? != n {
            return Err(shape("numbers of inputs", inputs.len(), targets.len()));
        }
        let channels = self.cross.len();
        for (targets, inputs) in targets
            .chunks_exact(channels)
            .zip(inputs.chunks_exact(channels))
        {
            for (i, (r, x)) in targets.iter().zip(inputs).enumerate() {
                let (r, x) = (r.to_f64(), x.to_f64());
                self.cross[i] += r * x;
                self.sum[i] += r;
                self.energy[i] += r * r;
            }
        }
        self.count += n;
        Ok(())
    }

    /// Adds the moments of other samples.
    ///
    /// # Errors
    /// If they have another number of channels.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if other.cross.len() != self.cross.len() {
            return Err(shape(
                "channels of other targets",
                other.cross.len(),
                self.cross.len(),
            ));
        }
        add(&mut self.cross, &other.cross);
        add(&mut self.sum, &other.sum);
        add(&mut self.energy, &other.energy);
        self.count += other.count;
        Ok(())
    }
}

/// One task of a normalisation layer.
#[derive(Debug, Clone, Copy)]
pub struct ChannelTask<'a> {
    /// ω_t ≥ 0.
    pub weight: f64,
    /// γ_t − γ₀.
    pub scale: &'a [f64],
    /// β_t − β₀, where the layer has a shift; all tasks or none.
    pub shift: Option<&'a [f64]>,
    /// Moments of x̃, normalised.
    pub input: &'a ChannelMoments,
    /// Moments of the residual targets, where x̃ is not the input the teacher saw.
    pub target: Option<&'a ChannelTargets>,
}

/// The best scale and shift.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelSolution {
    /// Update of γ.
    pub scale: Vec<f64>,
    /// Update of β.
    pub shift: Option<Vec<f64>>,
    /// Which share of the residual energy it captures.
    pub captured: Captured,
    /// What a reader of the answer should know.
    pub notes: Vec<Note>,
}

/// The scales (and shifts) of least J + λ · mean(G_γγ) · ‖update − prior‖², a prior being (γ, β) or 0. Channels that no
/// sample moved keep the prior.
///
/// # Errors
/// If there is no task, sizes differ, a number is not finite or a weight negative, or moments hold no samples.
pub fn solve_channels(
    tasks: &[ChannelTask<'_>],
    prior: Option<(&[f64], Option<&[f64]>)>,
    lambda: f64,
) -> Result<ChannelSolution> {
    let channels = tasks.first().ok_or(Error::NoTasks)?.scale.len();
    let shifted = tasks[0].shift.is_some();
    check(tasks, channels, shifted, prior)?;
    if !(lambda >= 0.0 && lambda.is_finite()) {
        return Err(out_of_range(
            "the ridge",
            lambda,
            "a finite number of at least 0",
        ));
    }
    let unknowns = 1 + usize::from(shifted);
    let factors: Vec<f64> = tasks
        .iter()
        .map(|task| task.weight / task.input.count() as f64)
        .collect();
    let unit = tasks
        .iter()
        .zip(&factors)
        .map(|(task, factor)| factor * task.input.square.iter().sum::<f64>())
        .sum::<f64>()
        / channels.max(1) as f64;
    let rho = lambda * unit;

    let mut solution = ChannelSolution {
        scale: vec![0.0; channels],
        shift: shifted.then(|| vec![0.0; channels]),
        captured: Captured::new(0.0, 0.0, Vec::new()),
        notes: Vec::new(),
    };
    let mut rank = 0;
    let mut objectives = vec![(0.0, 0.0); tasks.len()];
    for i in 0..channels {
        let own: Vec<Channel> = tasks.iter().map(|task| Channel::of(task, i)).collect();
        let start = [
            prior.map_or(0.0, |prior| prior.0[i]),
            prior
                .and_then(|prior| prior.1)
                .map_or(0.0, |shift| shift[i]),
        ];
        // For the distance from the prior, of which the least is taken where the data say nothing.
        let (mut h, mut b) = ([[0.0; 2]; 2], [0.0; 2]);
        for (channel, factor) in own.iter().zip(&factors) {
            for j in 0..2 {
                for k in 0..2 {
                    h[j][k] += factor * channel.gram[j][k];
                    b[j] -= factor * channel.gram[j][k] * start[k];
                }
                b[j] += factor * channel.cross[j];
            }
        }
        let h = Matrix::from_fn(unknowns, unknowns, |j, k| {
            h[j][k] + if j == k { rho } else { 0.0 }
        });
        let minimum = minimise(&h, &b[..unknowns], Constraint::Free, 0.0)?;
        rank += minimum.rank;
        let mut update = start;
        for (update, x) in update.iter_mut().zip(&minimum.x) {
            *update += x;
        }
        solution.scale[i] = update[0];
        if let Some(shift) = &mut solution.shift {
            shift[i] = update[1];
        }
        for (channel, sums) in own.iter().zip(&mut objectives) {
            sums.0 += channel.objective(update).max(0.0);
            sums.1 += channel.energy;
        }
    }
    if rank < unknowns * channels {
        solution.notes.push(Note::MinimumNorm {
            rank,
            of: unknowns * channels,
        });
    }
    solution.captured = captured(
        tasks.iter().map(|task| (task.weight, task.input.count)),
        &objectives,
    );
    if solution.captured.energy == 0.0 {
        solution.notes.push(Note::NoEnergy);
    }
    Ok(solution)
}

/// Weighted sums of J and E of tasks, given as unnormalised sums over their samples.
pub(crate) fn captured(
    tasks: impl Iterator<Item = (f64, u64)>,
    objectives: &[(f64, f64)],
) -> Captured {
    let (mut objective, mut energy) = (0.0, 0.0);
    let mut own = Vec::with_capacity(objectives.len());
    for ((weight, count), (j, e)) in tasks.zip(objectives) {
        let (j, e) = (j / count as f64, e / count as f64);
        objective += weight * j;
        energy += weight * e;
        own.push(TaskCaptured::new(j, e));
    }
    Captured::new(objective, energy, own)
}

/// The moments of one channel of one task.
struct Channel {
    gram: [[f64; 2]; 2],
    cross: [f64; 2],
    energy: f64,
}

impl Channel {
    fn of(task: &ChannelTask<'_>, i: usize) -> Self {
        let (square, sum) = (task.input.square[i], task.input.sum[i]);
        let gram = [[square, sum], [sum, task.input.count as f64]];
        if let Some(target) = task.target {
            return Self {
                gram,
                cross: [target.cross[i], target.sum[i]],
                energy: target.energy[i],
            };
        }
        let update = [task.scale[i], task.shift.map_or(0.0, |shift| shift[i])];
        let cross = gram.map(|row| row[0] * update[0] + row[1] * update[1]);
        Self {
            gram,
            cross,
            energy: (cross[0] * update[0] + cross[1] * update[1]).max(0.0),
        }
    }

    fn objective(&self, update: [f64; 2]) -> f64 {
        let product = self.gram.map(|row| row[0] * update[0] + row[1] * update[1]);
        update
            .iter()
            .zip(product)
            .zip(self.cross)
            .map(|((x, product), cross)| x * (product - 2.0 * cross))
            .sum::<f64>()
            + self.energy
    }
}

fn check(
    tasks: &[ChannelTask<'_>],
    channels: usize,
    shifted: bool,
    prior: Option<(&[f64], Option<&[f64]>)>,
) -> Result<()> {
    let finite = |what: String, values: &[f64]| {
        if values.len() != channels {
            return Err(shape(what, values.len(), channels));
        }
        merganser_linalg::check_finite(values, channels).map_err(|problem| refused(&what, problem))
    };
    for (t, task) in tasks.iter().enumerate() {
        finite(format!("the scale of task {t}"), task.scale)?;
        if task.shift.is_some() != shifted {
            return Err(shape(
                format!("a shift of task {t}"),
                task.shift.is_some(),
                shifted,
            ));
        }
        if let Some(shift) = task.shift {
            finite(format!("the shift of task {t}"), shift)?;
        }
        if task.input.channels() != channels {
            return Err(shape(
                format!("channels of the inputs of task {t}"),
                task.input.channels(),
                channels,
            ));
        }
        if task.input.count == 0 {
            return Err(Error::NoSamples { task: t });
        }
        if let Some(target) = task.target
            && (target.cross.len() != channels || target.count != task.input.count)
        {
            return Err(shape(
                format!("channels and samples of the targets of task {t}"),
                (target.cross.len(), target.count),
                (channels, task.input.count),
            ));
        }
        if !(task.weight >= 0.0 && task.weight.is_finite()) {
            return Err(out_of_range(
                format!("the weight of task {t}"),
                task.weight,
                "a finite number of at least 0",
            ));
        }
    }
    if tasks.iter().all(|task| task.weight == 0.0) {
        return Err(Error::NoWeight);
    }
    if let Some((scale, shift)) = prior {
        finite("the prior's scale".into(), scale)?;
        if let Some(shift) = shift {
            finite("the prior's shift".into(), shift)?;
        }
    }
    Ok(())
}

fn whole_rows<T: Real>(data: &[T], width: usize, what: &str) -> Result<u64> {
    if width == 0 || !data.len().is_multiple_of(width) {
        return Err(shape(
            format!("numbers of {what}"),
            data.len(),
            format!("whole rows of {width}"),
        ));
    }
    merganser_linalg::check_finite(data, width).map_err(|problem| refused(what, problem))?;
    Ok((data.len() / width) as u64)
}

fn add(to: &mut [f64], from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

fn out_of_range(what: impl Into<String>, found: f64, expected: &'static str) -> Error {
    Error::Range {
        what: what.into(),
        found,
        expected,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn moments(rows: &[f64], channels: usize) -> ChannelMoments {
        let mut moments = ChannelMoments::new(channels);
        moments.add_rows(rows).unwrap();
        moments
    }

    fn task<'a>(
        scale: &'a [f64],
        shift: Option<&'a [f64]>,
        input: &'a ChannelMoments,
    ) -> ChannelTask<'a> {
        ChannelTask {
            weight: 1.0,
            scale,
            shift,
            input,
            target: None,
        }
    }

    #[test]
    fn without_a_shift_it_is_the_mean_weighted_by_squares() {
        let (first, second) = (moments(&[1.0, 0.0, -1.0, 0.0], 2), moments(&[3.0, 0.0], 2));
        let tasks = [
            task(&[1.0, 5.0], None, &first),
            task(&[2.0, 6.0], None, &second),
        ];
        let solution = solve_channels(&tasks, Some((&[0.0, 7.0], None)), 0.0).unwrap();
        // (1·1 + 9·2)/(1 + 9); the second channel was never active and keeps the prior.
        assert!((solution.scale[0] - 1.9).abs() < 1e-14);
        assert_eq!(solution.scale[1], 7.0);
        assert_eq!(solution.notes, [Note::MinimumNorm { rank: 1, of: 2 }]);
        assert!((solution.captured.objective - (0.81 + 9.0 * 0.01)).abs() < 1e-13);
    }

    #[test]
    fn one_task_is_captured_whole_with_its_shift() {
        let input = moments(&[1.0, 2.0, -1.5, 0.5, 0.2, 4.0], 2);
        let tasks = [task(&[0.3, -0.2], Some(&[1.0, 2.0]), &input)];
        let solution = solve_channels(&tasks, None, 0.0).unwrap();
        assert!((solution.captured.fraction - 1.0).abs() < 1e-12);
        assert!((solution.scale[0] - 0.3).abs() < 1e-12);
        assert!((solution.shift.unwrap()[1] - 2.0).abs() < 1e-12);
    }

    #[test]
    fn targets_stand_for_updates() {
        let rows = [1.0, 2.0, -1.5, 0.5, 0.2, 4.0];
        let targets: Vec<f64> = rows
            .chunks(2)
            .flat_map(|x| [0.3 * x[0] + 1.0, -0.2 * x[1] + 2.0])
            .collect();
        let input = moments(&rows, 2);
        let mut target = ChannelTargets::new(2);
        target.add_rows(&targets, &rows).unwrap();
        let with = ChannelTask {
            target: Some(&target),
            ..task(&[9.0, 9.0], Some(&[9.0, 9.0]), &input)
        };
        let solution = solve_channels(&[with], None, 0.0).unwrap();
        assert!((solution.scale[1] + 0.2).abs() < 1e-12);
        assert!((solution.captured.fraction - 1.0).abs() < 1e-12);
    }

    #[test]
    fn bad_input_is_refused() {
        let input = moments(&[1.0, 2.0], 2);
        assert!(solve_channels(&[], None, 0.0).is_err());
        assert!(solve_channels(&[task(&[1.0], None, &input)], None, 0.0).is_err());
        assert!(solve_channels(&[task(&[1.0, f64::NAN], None, &input)], None, 0.0).is_err());
        assert!(
            solve_channels(
                &[task(&[1.0, 2.0], None, &ChannelMoments::new(2))],
                None,
                0.0
            )
            .is_err()
        );
        assert!(solve_channels(&[task(&[1.0, 2.0], None, &input)], None, f64::NAN).is_err());
        assert!(
            ChannelMoments::new(2)
                .add_rows(&[1.0, f64::INFINITY])
                .is_err()
        );
        assert!(ChannelMoments::from_parts(1, vec![-1.0], vec![0.0]).is_err());
    }
}
