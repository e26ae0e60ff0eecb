//! Fingerprints of models: a checksum over the names and `f32` values of tensors, in name order.
//!
//! An adapter, or the upper part of a model, is only valid on the weights that it was trained on.
//! An adapter is stored with the fingerprint of its base; a model that shares its lower layers with
//! another must have the same fingerprint there. The type in which a file stores the values does
//! not matter. CRC-32 protects against mistakes, not against malice.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use candle_core::Result;

use crate::files::checksum::{Checksum, Summed};
use crate::files::tensor_file::write_values;
use crate::ops::param::Param;

/// A checksum of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(Checksum);

/// Collects the checksums of tensors one by one, in any order.
#[derive(Default)]
pub struct FingerprintBuilder(BTreeMap<String, Checksum>);

impl FingerprintBuilder {
    /// Adds a tensor.
    pub fn add(&mut self, name: &str, values: &[f32]) {
        let mut sum = Summed::new(io::sink());
        // Writing to a sink cannot fail.
        write_values(&mut sum, values, |v, bytes| bytes.extend(v.to_le_bytes())).ok();
        self.0.insert(name.to_owned(), sum.finish());
    }

    /// The fingerprint of all tensors added so far.
    pub fn finish(self) -> Fingerprint {
        let mut sum = Summed::new(io::sink());
        for (name, of) in self.0 {
            writeln!(sum, "{name} {} {:08x}", of.bytes, of.crc32).ok();
        }
        Fingerprint(sum.finish())
    }
}

impl Fingerprint {
    /// The fingerprint of parameters.
    ///
    /// # Errors
    /// If a device fails.
    pub fn of<'p>(params: impl Iterator<Item = &'p Arc<Param>>) -> Result<Self> {
        let mut sums = FingerprintBuilder::default();
        for param in params {
            param.read(|values| sums.add(param.name(), values))?;
        }
        Ok(sums.finish())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:08x}", self.0.crc32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tensors: &[(&str, &[f32])]) -> String {
        let mut sums = FingerprintBuilder::default();
        tensors
            .iter()
            .for_each(|(name, values)| sums.add(name, values));
        sums.finish().to_string()
    }

    #[test]
    fn names_and_values_count_and_the_order_does_not() {
        let (a, b): (&[f32], &[f32]) = (&[1.0, 2.0], &[3.0]);
        let sum = of(&[("a", a), ("b", b)]);
        assert_eq!(of(&[("b", b), ("a", a)]), sum);
        for other in [
            of(&[("a", b), ("b", a)]),
            of(&[("a", a), ("c", b)]),
            of(&[("a", a)]),
            of(&[("a", &[1.0, 2.5]), ("b", b)]),
        ] {
            assert_ne!(other, sum);
        }
        assert_eq!(sum.len(), 8);
    }
}
