//! Supervised fine-tuning: the loss counts the answers' tokens only.

use anyhow::Result;

use super::context::Context;
use super::definition::CommandHelp;
use super::examples::Examples;
use super::language::NextTokenLoss;
use super::supervised::ExampleStage;
use crate::config::{Sft, Stage};
use crate::data;
use crate::data::example::{Encoded, Encoder, Example};
use crate::data::records::Record;
use crate::model::Decoder;
use crate::terminal;

impl ExampleStage for Sft {
    /// The examples of one record.
    type Record = Vec<Example>;
    type Objective = NextTokenLoss<Example>;

    fn help(_stage: Stage) -> CommandHelp {
        CommandHelp {
            about: "Fine-tune on answers: prompt and completion, or chats",
            details: "Needs [sft] with `data`. The loss counts answers only, and rows are packed \
                      without seeing one another.",
            example: "collimate sft configs/quickstart.toml --set sft.learning_rate=5e-4 --fresh",
        }
    }

    fn configure<'t>(&self, encoder: Encoder<'t>) -> Encoder<'t> {
        encoder.learning(self.learn)
    }

    fn encode(&self, encoder: &Encoder, records: &[Record]) -> data::Result<Encoded<Vec<Example>>> {
        encoder.examples(records)
    }

    /// A record becomes several examples if the chat template rewrites its earlier turns.
    fn split(&self, mut records: Examples<Vec<Example>>) -> Examples<Example> {
        let lengths = records.training.all.iter().chain(&records.held_out);
        let lengths: Vec<usize> = lengths.map(Vec::len).collect();
        let (count, examples) = (lengths.len(), lengths.iter().sum::<usize>());
        let split = lengths.iter().filter(|&&length| length > 1).count();
        if split > 0 {
            terminal::note(format_args!(
                "sft: the chat template renders earlier turns differently once later turns follow, \
                 so each answer of {split} of {count} records is an example of its own, {examples} \
                 examples in all; to train on the last answers alone, set sft.learn to \"last\""
            ));
            records.reports.add_row(
                "records split into one example per answer",
                format!("{split} of {count}, {examples} examples"),
            );
        }
        records.flatten()
    }

    fn objective(
        &self,
        _context: &Context,
        model: &Decoder,
        _examples: &mut Examples<Example>,
    ) -> Result<Option<NextTokenLoss<Example>>> {
        Ok(Some(NextTokenLoss::new(model, self.layerwise_lr_decay)))
    }
}
