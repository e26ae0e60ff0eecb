//! Rows of pretraining text: of all files as one stream, or of each file by itself where files are drawn from by weight.

use anyhow::{Context as _, Result};

use super::dataset::Items;
use super::language::RowSet;
use super::pretrain::pack;
use crate::data::packing::{Batch, Packed};
use crate::data::records::Record;
use crate::data::tokenizer::Tokenizer;

/// Rows of one stream after the other.
pub struct Texts {
    streams: Vec<(Packed, Option<f64>)>,
}

impl Texts {
    /// Packs the records into rows of `context` tokens. A row holds text of one file alone where the files have weights.
    ///
    /// # Errors
    /// If a record has no text, or a stream does not fill a row.
    pub fn pack(tokenizer: &Tokenizer, records: &Items<Record>, context: usize) -> Result<Self> {
        let weighted = records.by_file().any(|(_, weight)| weight.is_some());
        let streams = match weighted {
            false => vec![(pack(tokenizer, &records.all, context)?, None)],
            true => records
                .by_file()
                .map(|(file, weight)| Ok((pack(tokenizer, file, context)?, weight)))
                .collect::<Result<_>>()?,
        };
        Ok(Self { streams })
    }

    /// A place for each row, by stream and weight: what the order of training is made of.
    pub fn places(&self) -> Items<()> {
        let counts = self.streams.iter();
        Items::of_files(counts.map(|(rows, weight)| (rows.len(), *weight)).collect())
    }

    fn window(&self, index: usize) -> Option<&[u32]> {
        let mut index = index;
        for (rows, _) in &self.streams {
            match index.checked_sub(rows.len()) {
                None => return rows.window(index),
                Some(rest) => index = rest,
            }
        }
        None
    }
}

impl RowSet for Texts {
    fn len(&self) -> usize {
        self.streams.iter().map(|(rows, _)| rows.len()).sum()
    }

    fn tokens(&self, index: usize) -> usize {
        self.window(index).map_or(0, |window| window.len() - 1)
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let windows: Option<Vec<&[u32]>> = indices.iter().map(|&i| self.window(i)).collect();
        Ok(Batch::from_windows(
            &windows.context("a window past the end of the text")?,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_several_streams_stand_one_after_the_other() {
        let stream = |first: u32, weight| {
            let tokens: Vec<u32> = (first..first + 8).collect();
            (Packed::new(&[tokens], 0, 4).unwrap(), weight)
        };
        let texts = Texts {
            streams: vec![stream(10, Some(1.0)), stream(20, Some(3.0))],
        };
        assert_eq!((texts.len(), texts.places().all.len()), (4, 4));
        assert_eq!(texts.window(1), Some(&[14, 15, 16, 17, 0][..]));
        assert_eq!(texts.window(2), Some(&[20, 21, 22, 23, 24][..]));
        assert_eq!((texts.window(4), texts.tokens(3)), (None, 4));
        assert_eq!(texts.batch(&[2, 0]).unwrap().ids[..5], [20, 21, 22, 23, 10]);
        assert!(texts.batch(&[4]).is_err());
    }
}
