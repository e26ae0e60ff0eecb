//! The lines of a log up to a checkpoint, and whether any are missing.

use std::io;
use std::path::Path;

use serde_json::Value;

use super::{RequiredLines, STEP};
use crate::files::durable::on;
use crate::files::regular;

/// The lines of a file up to a step.
pub(super) struct LogLines {
    /// Length in bytes of the lines up to that step, if none of them has a fault.
    pub length: u64,
    /// The valid lines up to that step, in order.
    pub fitting: Vec<u8>,
    /// First fault of the file.
    pub damage: Option<String>,
    /// Whether the file has any contents.
    pub is_there: bool,
}

/// The reading of a log, line by line.
struct LogReader<'a> {
    step: u64,
    required: RequiredLines,
    lines: LogLines,
    /// Step of the last line that fits.
    last: Option<u64>,
    /// Number and step of the first line beyond the step.
    beyond: Option<(usize, u64)>,
    path: &'a Path,
}

impl LogLines {
    /// Reads the lines up to `step` of a file, which may be missing.
    ///
    /// # Errors
    /// If the file cannot be read, or a line other than the last is not an object with a step.
    pub fn read(path: &Path, step: u64, required: RequiredLines) -> io::Result<Self> {
        let bytes = match regular::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(on("read", path))?,
        };
        let mut reader = LogReader {
            step,
            required,
            lines: Self {
                length: 0,
                fitting: Vec::new(),
                damage: None,
                is_there: !bytes.is_empty(),
            },
            last: None,
            beyond: None,
            path,
        };
        let mut rest = bytes.len();
        for (number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
            rest -= line.len();
            reader.take(number, line, rest == 0)?;
        }
        Ok(reader.finish())
    }
}

impl LogReader<'_> {
    fn take(&mut self, number: usize, line: &[u8], is_last: bool) -> io::Result<()> {
        let Some(found) = step_of(line) else {
            // A torn last line, and lines beyond the step, are cut off.
            return match is_last || self.beyond.is_some() {
                true => Ok(()),
                false => Err(not_a_line(self.path, number)),
            };
        };
        if found > self.step {
            self.beyond.get_or_insert((number, found));
            return Ok(());
        }
        if let Some((number, beyond)) = self.beyond {
            self.note(format!(
                "line {number} is of step {beyond}, and one of step {found} follows"
            ));
        }
        let repeats = self.required == RequiredLines::EachStep && self.last == Some(found);
        if repeats || self.last.is_some_and(|last| found < last) {
            let last = self.last.unwrap_or_default();
            self.note(format!(
                "line {number} is of step {found}, after one of step {last}"
            ));
            return Ok(());
        }
        self.last = Some(found);
        self.lines.length += line.len() as u64;
        self.lines.fitting.extend(line);
        Ok(())
    }

    fn finish(mut self) -> LogLines {
        let step = self.step;
        match (self.required, self.last) {
            (RequiredLines::None, _) | (RequiredLines::AtLeastOne, Some(_)) => {}
            (RequiredLines::EachStep, _) if step == 0 => {}
            (_, None) => self.note(format!(
                "it has no line of a step up to {step}, of which there is a checkpoint"
            )),
            (RequiredLines::EachStep, Some(last)) if last < step => self.note(format!(
                "it ends at step {last}, and there is a checkpoint of step {step}"
            )),
            (RequiredLines::EachStep, Some(_)) => {}
        }
        self.lines
    }

    fn note(&mut self, damage: String) {
        self.lines.damage.get_or_insert(damage);
    }
}

/// The step of a complete line; a line without its newline was torn.
fn step_of(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\n")?;
    serde_json::from_slice::<Value>(line)
        .ok()?
        .get(STEP)?
        .as_u64()
}

fn not_a_line(path: &Path, number: usize) -> io::Error {
    let message = format!(
        "{}:{number}: not a JSON object with a whole number as `{STEP}`; remove the line, or start \
         over with --fresh",
        path.display()
    );
    io::Error::new(io::ErrorKind::InvalidData, message)
}
