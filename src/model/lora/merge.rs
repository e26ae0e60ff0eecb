//! An adapter merged into its weight: `W + scale · B · A`.
//!
//! The product is always computed by chains, so that a model folder's weights and their
//! fingerprints have the same bits on every processor.

use kernels::host::product::{Matrix, ProductKernel, Threads, Write, multiply};

use super::{AdaptedModule, Lora};

/// `weight` (`[outputs, inputs]`) plus the adapter of `a` (`[r, inputs]`) and `b` (`[outputs, r]`).
pub fn merged(
    lora: &Lora,
    module: &AdaptedModule,
    mut weight: Vec<f32>,
    a: &[f32],
    b: &[f32],
) -> Vec<f32> {
    let (r, inputs) = (lora.r, module.inputs);
    let scaled: Vec<f32> = b.iter().map(|b| b * lora.scale()).collect();
    let b = Matrix::new(&scaled, module.outputs, r, r);
    let a = Matrix::new(a, r, inputs, inputs);
    let chains = ProductKernel::Chains;
    multiply(chains, b, a, &mut weight, inputs, Write::Add, Threads::All);
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_worked_by_hand() {
        let module = AdaptedModule {
            name: "m".to_owned(),
            outputs: 2,
            inputs: 3,
        };
        let lora = Lora {
            r: 1,
            lora_alpha: 2.0,
            use_rslora: false,
            modules: vec![module.clone()],
        };
        let weight = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let sum = merged(&lora, &module, weight, &[1.0, 0.0, -1.0], &[3.0, 0.5]);
        assert_eq!(sum, [7.0, 2.0, -3.0, 5.0, 5.0, 5.0]);
    }
}
