//! The generation loop: plan a step, run the model, sample tokens, retire finished sequences.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::Error;
use crate::model::{Chunk, Model, ModelStep, Next};
use crate::sampling::{Draw, Drawn, SequenceId};
use crate::scheduler::{ScheduledChunk, Scheduler, StepPlan};
use crate::sequence::{Finish, SampleState};
use crate::settings::{self, GenerationSettings, LastToken, Request};

/// One generated answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Index into the requests.
    pub request: usize,
    /// Index of the sample within its request, from 0.
    pub sample: usize,
    /// The generated tokens, a stop token included.
    pub tokens: Vec<u32>,
    /// Each token's log-probability in the distribution it was drawn from.
    pub log_probs: Vec<f32>,
    /// Each token's log-probability over the whole vocabulary at the sampling temperature; empty if
    /// no token's distribution was cut, since [`Self::log_probs`] are then the same.
    pub whole_log_probs: Vec<f32>,
    /// Each token's entropy of the distribution it was drawn from, in nats; empty unless
    /// [`GenerationSettings::entropies`] is set.
    pub entropies: Vec<f32>,
    /// For each token the ids that could have been drawn, ascending; `None` for the whole
    /// vocabulary.
    pub kept: Vec<Option<Arc<[u32]>>>,
    /// Why the completion ended.
    pub finish: Finish,
}

/// The completions of a generation and its statistics.
#[derive(Clone, Debug)]
pub struct GenerationOutput {
    /// In order of (request, sample).
    pub completions: Vec<Completion>,
    /// Steps, tokens and cache blocks of the generation.
    pub stats: GenerationStats,
}

/// Counts of the work that a generation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationStats {
    /// Calls of the model.
    pub steps: usize,
    /// Tokens read in chunks of more than one: prompts, and preempted sequences read again.
    pub prefill_tokens: usize,
    /// Tokens read one at a time.
    pub decode_tokens: usize,
    /// Cache blocks that were reserved.
    pub reserved_blocks: usize,
    /// The largest number of blocks in use at once.
    pub peak_blocks: usize,
    /// Times that a sequence lost its blocks to an earlier one.
    pub preemptions: usize,
}

/// Progress of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationProgress {
    /// Completions that have ended.
    pub finished: usize,
    /// Completions in total.
    pub total: usize,
    /// Tokens generated so far.
    pub tokens: usize,
}

/// Draws every request's samples from `model`, many at a time.
///
/// `progress` is called after each step. On an error nothing is returned; the model may be used
/// again.
pub fn generate<M: Model>(
    model: &mut M,
    requests: &[Request],
    settings: &GenerationSettings<'_>,
    progress: &mut dyn FnMut(GenerationProgress),
) -> Result<GenerationOutput, Error> {
    let spec = model.cache_spec();
    let blocks = settings::check(requests, settings, &spec)?;
    let failed = |source| Error::Model {
        action: "reserve its cache",
        step: 0,
        source,
    };
    model.reserve(blocks as usize).map_err(failed)?;
    let mut run = RunningGeneration {
        requests,
        settings,
        vocab_size: spec.vocab_size,
        scheduler: Scheduler::new(requests, settings, blocks),
        stats: GenerationStats {
            reserved_blocks: blocks as usize,
            ..GenerationStats::default()
        },
        tokens: 0,
        newest_kept: None,
        finished: requests
            .iter()
            .filter(|r| r.max_new_tokens == 0)
            .map(|r| r.samples)
            .sum(),
    };
    while !run.scheduler.is_done() {
        if settings
            .cancel
            .is_some_and(|flag| flag.load(Ordering::Relaxed))
        {
            return Err(Error::Cancelled);
        }
        run.step(model)?;
        progress(run.progress());
    }
    Ok(run.output())
}

/// A generation under way.
struct RunningGeneration<'a> {
    requests: &'a [Request],
    settings: &'a GenerationSettings<'a>,
    vocab_size: usize,
    scheduler: Scheduler,
    stats: GenerationStats,
    tokens: usize,
    finished: usize,
    /// The newest kept set. A mask of stops leaves the same set for token after token, nearly the
    /// whole vocabulary: it is held once.
    newest_kept: Option<Arc<[u32]>>,
}

impl RunningGeneration<'_> {
    fn step<M: Model>(&mut self, model: &mut M) -> Result<(), Error> {
        let plan = self.scheduler.plan()?;
        let logits = self.forward(model, &plan)?;
        for &turn in &plan.turns {
            self.count(turn);
            self.scheduler.sequences[turn.index].cached += turn.count;
        }
        self.end_read(&plan, model);
        let drawing = self.drawing(&plan);
        let drawn = self.draw(model, &logits, &drawing)?;
        self.stats.steps += 1;
        for (&(_, index), drawn) in drawing.iter().zip(drawn) {
            self.accept(index, drawn, model)?;
        }
        Ok(())
    }

    fn forward<M: Model>(&self, model: &mut M, plan: &StepPlan) -> Result<M::Logits, Error> {
        let chunk = |turn: &ScheduledChunk| {
            let sequence = &self.scheduler.sequences[turn.index];
            Chunk {
                sequence: sequence.id,
                tokens: &sequence.tokens[sequence.cached..sequence.cached + turn.count],
                past: sequence.cached,
                blocks: &sequence.blocks,
                next: sequence.next(),
            }
        };
        let chunks: Vec<Chunk<'_>> = plan.turns.iter().map(chunk).collect();
        let step = ModelStep {
            copies: &plan.copies,
            chunks: &chunks,
        };
        model
            .forward(&step)
            .map_err(|source| self.failed("read the next tokens", source))
    }

    fn failed(
        &self,
        action: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> Error {
        Error::Model {
            action,
            step: self.stats.steps,
            source,
        }
    }

    fn count(&mut self, turn: ScheduledChunk) {
        match self.scheduler.sequences[turn.index].unread() {
            1 => self.stats.decode_tokens += 1,
            _ => self.stats.prefill_tokens += turn.count,
        }
    }

    /// Pairs of a row and the sequence that draws from it: each unfinished sequence read to its
    /// end. Where that end is the prompt's, the request's other samples fork and draw from the same
    /// row.
    fn drawing(&mut self, plan: &StepPlan) -> Vec<(usize, usize)> {
        let sequences = &self.scheduler.sequences;
        let continues = |turn: &&ScheduledChunk| sequences[turn.index].next() == Next::Continues;
        let turns: Vec<ScheduledChunk> = plan.turns.iter().filter(continues).copied().collect();
        let mut drawing = Vec::new();
        for (row, turn) in turns.into_iter().enumerate() {
            let sequence = &self.scheduler.sequences[turn.index];
            if sequence.unread() > 0 {
                continue;
            }
            drawing.push((row, turn.index));
            if sequence.generated().is_empty() {
                for other in 1..self.requests[sequence.id.request].samples {
                    self.scheduler.fork(turn.index, turn.index + other);
                    drawing.push((row, turn.index + other));
                }
            }
        }
        drawing
    }

    fn draw<M: Model>(
        &self,
        model: &mut M,
        logits: &M::Logits,
        drawing: &[(usize, usize)],
    ) -> Result<Vec<Drawn>, Error> {
        let draws: Vec<Draw<'_>> = drawing
            .iter()
            .map(|&(row, index)| self.request_draw(row, index))
            .collect();
        if draws.is_empty() {
            return Ok(Vec::new());
        }
        let drawn = model
            .draw(logits, &draws)
            .map_err(|source| self.failed("draw the next tokens", source))?;
        if drawn.len() == draws.len() {
            return Ok(drawn);
        }
        let found = format!(
            "{} tokens for {} requests, the first",
            drawn.len(),
            draws.len()
        );
        Err(Error::Drawn {
            sequence: draws[0].sequence,
            found,
            expected: "it must draw one for each",
        })
    }

    fn request_draw(&self, row: usize, index: usize) -> Draw<'_> {
        let sequence = &self.scheduler.sequences[index];
        Draw {
            row,
            sequence: sequence.id,
            position: sequence.generated().len(),
            decoding: self.settings.decoding,
            forbidden: sequence.forbidden(self.settings.stop_ids),
            uniform: self.uniform(sequence),
            entropy: self.settings.entropies,
        }
    }

    /// The random number of a sequence's next token.
    fn uniform(&self, sequence: &SampleState) -> f64 {
        let SequenceId { request, sample } = sequence.id;
        let key = self.settings.key;
        key.child(self.settings.iteration, self.requests[request].key)
            .uniform(sample as u64, sequence.generated().len() as u64)
    }

    /// Adds a drawn token; retires the sequence if it ends there.
    fn accept<M: Model>(
        &mut self,
        index: usize,
        mut drawn: Drawn,
        model: &mut M,
    ) -> Result<(), Error> {
        let kept = drawn.kept.take().map(|ids| self.held_once(ids));
        let sequence = &mut self.scheduler.sequences[index];
        let finite = drawn.log_prob.is_finite() && drawn.whole_log_prob.is_finite();
        if drawn.token as usize >= self.vocab_size || !finite {
            return Err(Error::Drawn {
                sequence: sequence.id,
                found: format!(
                    "token {} with log-probability {}",
                    drawn.token, drawn.log_prob
                ),
                expected: "both must be finite and the token one of the vocabulary",
            });
        }
        sequence.push(&drawn, kept, self.settings);
        self.tokens += 1;
        if sequence.finish.is_some() {
            self.finished += 1;
            if self.settings.last_token == LastToken::Unread {
                self.end(index, model);
            }
        }
        Ok(())
    }

    /// A shared copy of `ids`: the newest kept set if it is equal, else a new one.
    fn held_once(&mut self, ids: Vec<u32>) -> Arc<[u32]> {
        match &self.newest_kept {
            Some(newest) if **newest == *ids => newest.clone(),
            _ => self.newest_kept.insert(ids.into()).clone(),
        }
    }

    /// Retires the finished sequences whose last token has been read.
    fn end_read<M: Model>(&mut self, plan: &StepPlan, model: &mut M) {
        for turn in &plan.turns {
            let sequence = &self.scheduler.sequences[turn.index];
            if sequence.finish.is_some() && sequence.unread() == 0 {
                self.end(turn.index, model);
            }
        }
    }

    fn end<M: Model>(&mut self, index: usize, model: &mut M) {
        model.release(self.scheduler.sequences[index].id);
        self.scheduler.retire(index);
    }

    fn progress(&self) -> GenerationProgress {
        GenerationProgress {
            finished: self.finished,
            total: self.scheduler.sequences.len(),
            tokens: self.tokens,
        }
    }

    fn output(self) -> GenerationOutput {
        let stats = GenerationStats {
            peak_blocks: self.scheduler.peak_blocks(),
            preemptions: self.scheduler.preemptions,
            ..self.stats
        };
        let completions = self
            .scheduler
            .sequences
            .into_iter()
            .map(completion)
            .collect();
        GenerationOutput { completions, stats }
    }
}

fn completion(mut sequence: SampleState) -> Completion {
    Completion {
        request: sequence.id.request,
        sample: sequence.id.sample,
        tokens: sequence.tokens.split_off(sequence.prompt_len),
        log_probs: sequence.log_probs,
        whole_log_probs: sequence.whole_log_probs,
        entropies: sequence.entropies,
        kept: sequence.kept,
        // The loop ends when all have finished.
        finish: sequence.finish.unwrap_or(Finish::Length),
    }
}
