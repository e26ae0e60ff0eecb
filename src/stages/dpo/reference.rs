//! The reference's log-probs of all answers: computed once, and kept in `reference.safetensors` in
//! the stage's folder, with a note of what they depend on.
//!
//! They are read back only if the models and data files (`inputs.json`), the tokens of all pairs
//! and the program are the same, and the file's checksum holds; else they are computed again, which
//! gives the same bits.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use safetensors::{Dtype, SafeTensors};

use super::ReferencedPair;
use crate::data::packing::cut;
use crate::files::checksum::{self, Checksum, Summed};
use crate::files::durable::{on, replace_file};
use crate::files::regular;
use crate::files::tensor_file::{Description, write_header};
use crate::model::{Decoder, Gradient};
use crate::rlhf::RaggedRows;
use crate::stages::context::Context;
use crate::stages::examples::Examples;
use crate::stages::language;
use crate::stages::pairs;
use crate::terminal;
use crate::terminal::Phase;

const FILE: &str = "reference.safetensors";
const TRAINING: &str = "training";
const HELD_OUT: &str = "held_out";
/// The one note in the file's header (of several the order would not be fixed): the inputs that the
/// values depend on, and the checksum of the values.
const NOTE: &str = "reference_log_probs";
/// Separates the two parts of the note.
const VALUES: &str = "; values ";

/// The pairs of a stage.
struct Pairs<'a> {
    /// Pairs to train on.
    training: &'a [ReferencedPair],
    /// Pairs to measure on.
    held_out: &'a [ReferencedPair],
}

/// The reference's log-prob of each pair's chosen and rejected answer as a whole.
#[derive(Debug, PartialEq)]
struct References {
    /// Log-probs of the pairs to train on.
    training: Vec<[f64; 2]>,
    /// Log-probs of the held-out pairs.
    held_out: Vec<[f64; 2]>,
}

/// Why a file of log-probs is not used.
enum Unusable {
    /// The log-probs are those of another model, other data or other tokens.
    Other,
    /// The file is damaged.
    Damaged,
}

/// Sets the reference log-probs of each pair: read from the file of an earlier process, or computed
/// by `model`, which must have its starting weights, in passes of at most `limit` tokens. False if
/// a signal requested a stop first.
///
/// # Errors
/// If the computation fails, or a file cannot be read or written.
pub fn read_or_compute(
    context: &Context,
    examples: &mut Examples<ReferencedPair>,
    model: &Decoder,
    limit: usize,
) -> Result<bool> {
    let pairs = Pairs {
        training: &examples.training.all,
        held_out: &examples.held_out,
    };
    let Some(found) = References::read_or_compute(context, &pairs, model, limit)? else {
        return Ok(false);
    };
    set(&mut examples.training.all, found.training);
    set(&mut examples.held_out, found.held_out);
    Ok(true)
}

fn set(pairs: &mut [ReferencedPair], found: Vec<[f64; 2]>) {
    for (pair, reference) in pairs.iter_mut().zip(found) {
        pair.reference = Some(reference);
    }
}

impl References {
    fn read_or_compute(
        context: &Context,
        pairs: &Pairs,
        model: &Decoder,
        limit: usize,
    ) -> Result<Option<Self>> {
        let file = ReferenceFile {
            file: context.folder.path().join(FILE),
            depends_on: depends_on(context, pairs)?,
        };
        let why = match file.read(pairs)? {
            Some(Ok(references)) => return Ok(Some(references)),
            Some(Err(Unusable::Damaged)) => "; the file of an earlier process is damaged",
            Some(Err(Unusable::Other)) => "; the file of an earlier process is of other pairs",
            None => "",
        };
        let count = pairs.training.len() + pairs.held_out.len();
        terminal::note(format_args!(
            "{}: log-probs of {count} pairs under the reference, computed once{why}",
            context.stage,
        ));
        let phase = Phase::counted("reference log-probs of pairs", count);
        let of = |pairs| log_probs(context, pairs, model, limit, &phase);
        let (Some(training), Some(held_out)) = (of(pairs.training)?, of(pairs.held_out)?) else {
            return Ok(None);
        };
        let references = Self { training, held_out };
        file.write(&references)?;
        Ok(Some(references))
    }

    /// The values of both sets as they stand in the file.
    fn bytes(&self) -> Vec<u8> {
        let values = self.held_out.iter().chain(&self.training).flatten();
        values.flat_map(|value| value.to_le_bytes()).collect()
    }
}

/// Log-probs of whole answers, pair by pair; `None` if a signal requested a stop.
fn log_probs(
    context: &Context,
    pairs: &[ReferencedPair],
    model: &Decoder,
    limit: usize,
    phase: &Phase,
) -> Result<Option<Vec<[f64; 2]>>> {
    let mut all = Vec::with_capacity(pairs.len());
    let tokens = |i: usize| pairs::tokens(&pairs[i].pair);
    for run in cut((0..pairs.len()).collect(), tokens, limit) {
        if context.stop.is_requested() {
            return Ok(None);
        }
        let answers = pairs::answers(run.iter().map(|&i| &pairs[i].pair));
        let rows = RaggedRows::new(&answers.offsets)?;
        let found = language::log_probs(model, &answers, Gradient::Skip)?.to_vec1::<f32>()?;
        let sums = rows.sums("log-probs of answers", &found)?;
        all.extend(sums.as_chunks().0);
        phase.add(run.len());
    }
    Ok(Some(all))
}

/// Everything that the log-probs are a function of, as text: checksums of the stage's inputs and of
/// the pairs' tokens, and the program's version.
fn depends_on(context: &Context, pairs: &Pairs) -> Result<String> {
    let inputs = checksum::of_file(&context.folder.inputs())?;
    let mut tokens = Summed::new(io::sink());
    for ReferencedPair { pair, .. } in pairs.training.iter().chain(pairs.held_out) {
        for part in [&pair.prompt, &pair.chosen, &pair.rejected] {
            tokens.write_all(&(part.len() as u64).to_le_bytes())?;
            part.iter()
                .try_for_each(|id| tokens.write_all(&id.to_le_bytes()))?;
        }
    }
    let parts = [
        ("inputs", shown(inputs)),
        ("tokens", shown(tokens.finish())),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let parts = parts.map(|(name, value)| format!("{name} {value}"));
    Ok(parts.join(", "))
}

fn shown(sum: Checksum) -> String {
    format!("{} bytes {:08x}", sum.bytes, sum.crc32)
}

/// The file, and the inputs that its log-probs must be of.
struct ReferenceFile {
    file: PathBuf,
    depends_on: String,
}

impl ReferenceFile {
    /// The log-probs of `pairs`, or why they are not used; `None` if there is no file.
    fn read(&self, pairs: &Pairs) -> io::Result<Option<Result<References, Unusable>>> {
        match regular::read(&self.file) {
            Ok(bytes) => Ok(Some(self.parse(&bytes, pairs))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(on("read", &self.file)(error)),
        }
    }

    fn parse(&self, bytes: &[u8], pairs: &Pairs) -> Result<References, Unusable> {
        let damaged = |_| Unusable::Damaged;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let notes = header.metadata().as_ref();
        let note = notes.and_then(|notes| notes.get(NOTE)?.split_once(VALUES));
        let (depends_on, checksum) = note.ok_or(Unusable::Damaged)?;
        if depends_on != self.depends_on {
            return Err(Unusable::Other);
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let values = |name: &str, pairs: &[ReferencedPair]| {
            let tensor = tensors.tensor(name).map_err(damaged)?;
            let (values, rest) = tensor.data().as_chunks();
            let values: Vec<f64> = values.iter().map(|b| f64::from_le_bytes(*b)).collect();
            let whole = rest.is_empty() && values.len() == 2 * pairs.len();
            whole
                .then(|| values.as_chunks().0.to_vec())
                .ok_or(Unusable::Other)
        };
        let references = References {
            training: values(TRAINING, pairs.training)?,
            held_out: values(HELD_OUT, pairs.held_out)?,
        };
        match checksum == sum(&references.bytes()) {
            true => Ok(references),
            false => Err(Unusable::Damaged),
        }
    }

    fn write(&self, references: &References) -> io::Result<()> {
        let bytes = references.bytes();
        let note = [&self.depends_on, VALUES, &sum(&bytes)].concat();
        let notes = BTreeMap::from([(NOTE.to_owned(), note)]);
        let described = [
            (HELD_OUT, references.held_out.len()),
            (TRAINING, references.training.len()),
        ]
        .map(|(name, pairs)| Description {
            name: name.to_owned(),
            dtype: Dtype::F64,
            shape: vec![pairs, 2],
        });
        replace_file(&self.file, |out| {
            write_header(out, Some(&notes), described.into_iter())?;
            out.write_all(&bytes)
        })
    }
}

fn sum(bytes: &[u8]) -> String {
    let mut summed = Summed::new(io::sink());
    // A sink takes everything.
    let _ = summed.write_all(bytes);
    shown(summed.finish())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::example::Pair;

    fn kept(folder: &tempfile::TempDir, depends_on: &str) -> ReferenceFile {
        ReferenceFile {
            file: folder.path().join(FILE),
            depends_on: depends_on.to_owned(),
        }
    }

    fn pairs(count: usize) -> Vec<ReferencedPair> {
        let pair = Pair {
            prompt: vec![1],
            chosen: vec![2],
            rejected: vec![3],
            margin: 0.0,
        };
        let pair = ReferencedPair {
            pair,
            reference: None,
        };
        vec![pair; count]
    }

    #[test]
    fn what_was_kept_is_read_back_bit_for_bit_unless_anything_is_other() {
        let folder = tempfile::tempdir().unwrap();
        let written = References {
            training: vec![[-1.0 / 3.0, f64::NEG_INFINITY], [-0.1, 1e-300]],
            held_out: vec![[-7.25, 0.0]],
        };
        let (two, one) = (pairs(2), pairs(1));
        let of = |training, held_out| Pairs { training, held_out };
        let ours = kept(&folder, "this");
        assert!(ours.read(&of(&two, &one)).unwrap().is_none());
        ours.write(&written).unwrap();
        let read = ours.read(&of(&two, &one)).unwrap().unwrap();
        assert!(read.is_ok_and(|read| read == written));
        for (file, pairs) in [
            (kept(&folder, "that"), of(&two, &one)),
            (kept(&folder, "this"), of(&one, &one)),
        ] {
            let read = file.read(&pairs).unwrap().unwrap();
            assert!(matches!(read, Err(Unusable::Other)));
        }
    }

    #[test]
    fn a_damaged_file_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (two, ours) = (pairs(2), kept(&folder, "this"));
        let written = References {
            training: vec![[-1.0, -2.0]; 2],
            held_out: Vec::new(),
        };
        ours.write(&written).unwrap();
        let whole = fs::read(&ours.file).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bytes in [&flipped[..], &whole[..whole.len() - 1], &whole[..9], b""] {
            fs::write(&ours.file, bytes).unwrap();
            let pairs = Pairs {
                training: &two,
                held_out: &[],
            };
            let read = ours.read(&pairs).unwrap().unwrap();
            assert!(
                matches!(read, Err(Unusable::Damaged)),
                "{} bytes",
                bytes.len()
            );
        }
    }
}
