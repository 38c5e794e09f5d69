//! The few-step sampler of flow matching: sigmas, x0 from flow, renoising.
//!
//! <https://github.com/guandeh17/Self-Forcing/blob/33593df/utils/scheduler.py>

use candle_core::{Result, Tensor, bail};

/// Timesteps of the untrained schedule.
const TRAIN_STEPS: usize = 1000;

/// The denoising steps with their sigmas; knows no current step.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowSchedule {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
}

impl FlowSchedule {
    /// Shifts falling `denoising_steps` of `0..=1000` by `s u / (1 + (s - 1) u)`.
    pub fn new(denoising_steps: &[u32], shift: f64) -> Result<Self> {
        check(denoising_steps, shift)?;
        let table: Vec<f32> = (0..TRAIN_STEPS).map(|i| shifted(i, shift)).collect();
        let timestep = |&step: &u32| {
            // The table has no entry for step 0, which stays 0.
            table.get(TRAIN_STEPS - step as usize).map_or(0.0, |sigma| sigma * TRAIN_STEPS as f32)
        };
        let timesteps: Vec<f32> = denoising_steps.iter().map(timestep).collect();
        let sigmas = timesteps.iter().map(|&t| f64::from(nearest(&table, t))).collect();
        Ok(Self { timesteps: timesteps.into_iter().map(f64::from).collect(), sigmas })
    }

    /// How many denoising steps a block makes.
    pub fn steps(&self) -> usize {
        self.sigmas.len()
    }

    /// What the network is conditioned on at each step, `0..=1000`.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// The sigma at each step, `0..=1`.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }
}

fn check(steps: &[u32], shift: f64) -> Result<()> {
    if steps.is_empty() || !steps.is_sorted_by(|a, b| a > b) || steps[0] > TRAIN_STEPS as u32 {
        bail!("denoising steps must be a falling list within 0..={TRAIN_STEPS}, got {steps:?}");
    }
    if !(shift.is_finite() && shift > 0.0) {
        bail!("timestep shift must be a positive number, got {shift}");
    }
    Ok(())
}

/// Sigma of the i-th entry of the trained schedule.
fn shifted(i: usize, shift: f64) -> f32 {
    let u = 1.0 - i as f64 / TRAIN_STEPS as f64;
    (shift * u / (1.0 + (shift - 1.0) * u)) as f32
}

/// The sigma whose timestep is nearest: a step of 0 has the smallest one, not none.
fn nearest(table: &[f32], timestep: f32) -> f32 {
    let distance = |sigma: &f32| (sigma * TRAIN_STEPS as f32 - timestep).abs();
    table.iter().copied().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or_default()
}

/// `x0 = x_t - sigma * flow`.
pub fn x0_from_flow(x_t: &Tensor, flow: &Tensor, sigma: f64) -> Result<Tensor> {
    x_t - (flow * sigma)?
}

/// `(1 - sigma) * x0 + sigma * noise`.
pub fn renoise(x0: &Tensor, noise: &Tensor, sigma: f64) -> Result<Tensor> {
    (x0 * (1.0 - sigma))? + (noise * sigma)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn timesteps(steps: &[u32], shift: f64) -> Vec<f64> {
        FlowSchedule::new(steps, shift).unwrap().timesteps().to_vec()
    }

    #[test]
    fn shifted_lists() {
        let close = |steps: &[u32], shift, expected: &[f64]| {
            for (got, want) in timesteps(steps, shift).iter().zip(expected) {
                assert!((got - want).abs() < 1e-3, "{steps:?}: {got} is not {want}");
            }
        };
        close(&[1000, 750, 500, 250], 5.0, &[1000.0, 937.5, 833.3333, 625.0]);
        close(&[1000, 666, 333, 0], 5.0, &[1000.0, 908.843, 713.979, 0.0]);
        close(&[1000, 750, 500, 250], 8.0, &[1000.0, 960.0, 888.889, 727.273]);
    }

    #[test]
    fn a_last_step_of_zero_still_has_a_sigma() {
        let schedule = FlowSchedule::new(&[1000, 0], 5.0).unwrap();
        assert!((schedule.sigmas()[1] - 0.00498).abs() < 1e-5);
        assert_eq!(schedule.sigmas()[0], 1.0);
    }

    #[test]
    fn lists_that_do_not_fall_are_refused() {
        for steps in [&[][..], &[500, 500], &[250, 500], &[1001]] {
            assert!(FlowSchedule::new(steps, 5.0).is_err(), "{steps:?}");
        }
        assert!(FlowSchedule::new(&[1000], f64::NAN).is_err());
    }

    #[test]
    fn renoising_without_noise_is_x0() -> Result<()> {
        let (x0, noise) =
            (Tensor::new(&[1f32, -2.0], &Device::Cpu)?, Tensor::new(&[9f32, 9.0], &Device::Cpu)?);
        assert_eq!(renoise(&x0, &noise, 0.0)?.to_vec1::<f32>()?, [1.0, -2.0]);
        assert_eq!(renoise(&x0, &noise, 1.0)?.to_vec1::<f32>()?, [9.0, 9.0]);
        let x_t = renoise(&x0, &noise, 0.25)?;
        let back = x0_from_flow(&x_t, &(noise - &x0)?, 0.25)?;
        assert_eq!(back.to_vec1::<f32>()?, [1.0, -2.0]);
        Ok(())
    }
}
