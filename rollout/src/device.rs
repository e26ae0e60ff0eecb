//! Sampling on a device, with the bits of [`draw_row`](crate::draw_row).

use kernels::device::Slice;
use kernels::device::sampling::{
    Choice, DrawBatch, DrawnToken, Filters, LogitsFault, RowDraw, Uniform, draw,
};

use crate::model::ModelResult;
use crate::sampling::{Decoding, Draw, Drawn, RowError, RowFault, Sampling};

/// Draws one token for each request from logits `[rows, vocabulary]`; a device's way to implement
/// [`crate::Model::draw`].
///
/// Results and kept sets are downloaded; the logits are not.
///
/// # Errors
/// A row that gives no token ([`RowError`]), and errors of the device.
pub fn draw_rows(
    logits: Slice<f32>,
    vocabulary: usize,
    draws: &[Draw<'_>],
) -> ModelResult<Vec<Drawn>> {
    let requests: Vec<RowDraw> = draws.iter().map(request).collect();
    let rows = logits.len() / vocabulary.max(1);
    let batch = DrawBatch::new(logits.gpu(), &requests, rows, vocabulary)?;
    let results = draw(logits, &batch)?.download()?.into_iter().zip(draws);
    let drawn = results.map(|(result, draw)| match result {
        Ok(token) => Ok(drawn(token, draw)),
        Err(fault) => Err(RowError {
            sequence: draw.sequence,
            position: draw.position,
            fault: fault_of(fault),
        }),
    });
    Ok(drawn.collect::<Result<_, _>>()?)
}

fn request<'a>(draw: &Draw<'a>) -> RowDraw<'a> {
    RowDraw {
        row: draw.row,
        choice: match draw.decoding {
            Decoding::Greedy => Choice::Greedy,
            Decoding::Sample(sampling) => Choice::Random {
                filters: filters(sampling),
                uniform: Uniform::Number(draw.uniform),
            },
        },
        suppressed: draw.forbidden,
    }
}

fn filters(sampling: Sampling) -> Filters {
    let Sampling {
        temperature,
        top_k,
        top_p,
        min_p,
    } = sampling;
    Filters {
        temperature,
        top_k,
        top_p,
        min_p,
    }
}

fn drawn(token: DrawnToken, draw: &Draw<'_>) -> Drawn {
    Drawn {
        token: token.token,
        log_prob: token.log_prob,
        whole_log_prob: token.whole_log_prob,
        entropy: draw.entropy.then_some(token.entropy),
        kept: token.kept,
    }
}

fn fault_of(fault: LogitsFault) -> RowFault {
    match fault {
        LogitsFault::NotANumber { token, value } => RowFault::NotANumber { token, value },
        LogitsFault::Empty => RowFault::Empty,
    }
}
