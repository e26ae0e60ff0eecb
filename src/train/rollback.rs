//! A copy in memory of trained parameters and their optimizer, to restore later.

use candle_core::Result;

use super::optimizer::AdamW;
use crate::ops::param::ParamStore;

/// The trained parameters of a store and the state of its optimizer. It takes three times the
/// parameters' bytes.
pub struct Rollback {
    /// Parameter values, ordered by name.
    params: Vec<Vec<f32>>,
    first: Vec<f32>,
    second: Vec<f32>,
    steps: u64,
}

impl Rollback {
    /// Copies parameters and moments.
    ///
    /// # Errors
    /// If the device fails.
    pub fn of(params: &ParamStore, optimizer: &AdamW) -> Result<Self> {
        let copied = params.trained().map(|param| param.read(<[f32]>::to_vec));
        let params = copied.collect::<Result<_>>()?;
        let [first, second] = optimizer.moments()?.map(std::borrow::Cow::into_owned);
        Ok(Self {
            params,
            first,
            second,
            steps: optimizer.steps(),
        })
    }

    /// Restores both, bit for bit, in the store and the optimizer that they were copied from.
    ///
    /// # Errors
    /// If the store or the optimizer is another one, or the device fails.
    pub fn put_back(self, params: &ParamStore, optimizer: &mut AdamW) -> Result<()> {
        for (param, values) in params.trained().zip(self.params) {
            param.overwrite(&values)?;
        }
        optimizer.restore(self.steps, self.first, self.second)
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::ops::backend::Backend;
    use crate::ops::param::{InitialParam, Trainability};
    use crate::train::optimizer::AdamWConfig;

    fn store() -> ParamStore {
        let param = |name: &str, training| InitialParam {
            name: name.to_owned(),
            shape: vec![2, 2],
            data: vec![0.1, -0.0, f32::MIN_POSITIVE / 2.0, 1e30],
            training,
        };
        let initial = vec![
            param("b", Trainability::Trained),
            param("a", Trainability::Trained),
            param("frozen", Trainability::Frozen),
        ];
        ParamStore::new(initial, &Backend::CPU).unwrap()
    }

    fn step(params: &ParamStore, optimizer: &mut AdamW) {
        params.zero_grad().unwrap();
        for param in params.trained() {
            param.accumulate_with(|g| g.fill(0.3)).unwrap();
        }
        optimizer.step(params, |_| 1e-2).unwrap();
    }

    /// The bits of everything that a step reads, frozen parameters too.
    fn bits(params: &ParamStore, optimizer: &AdamW) -> (Vec<u32>, u64) {
        let mut all = Vec::new();
        for param in params.iter() {
            param.read(|v| all.extend_from_slice(v)).unwrap();
        }
        for moments in optimizer.moments().unwrap() {
            all.extend_from_slice(&moments);
        }
        (
            all.into_iter().map(f32::to_bits).collect(),
            optimizer.steps(),
        )
    }

    #[test]
    fn steps_are_taken_back_to_the_last_bit() {
        let params = store();
        let config = AdamWConfig {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            max_grad_norm: 1.0,
        };
        let mut optimizer = AdamW::new(&params, config).unwrap();
        step(&params, &mut optimizer);
        let before = bits(&params, &optimizer);
        let start = Rollback::of(&params, &optimizer).unwrap();
        step(&params, &mut optimizer);
        let moved = bits(&params, &optimizer);
        assert_ne!(moved, before);
        start.put_back(&params, &mut optimizer).unwrap();
        assert_eq!(bits(&params, &optimizer), before);
        // From the restored state the same step leads to the same parameters.
        step(&params, &mut optimizer);
        assert_eq!(bits(&params, &optimizer), moved);
    }
}
