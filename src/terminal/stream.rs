//! Standard error and standard output, written to without holding the run up.
//!
//! A pipe whose reader lives and does not read is full at some point, and a write to it would wait
//! for that reader. Text is written in parts, each when the system says that there is room for it.
//! The first part that finds none waits for [`PATIENCE`]; as long as the stream stays full, further
//! text is dropped at once.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longest wait for room.
const PATIENCE: Duration = Duration::from_millis(100);

/// Bytes of a part: a pipe with any room has room for so many.
#[cfg(unix)]
const PART: usize = libc::PIPE_BUF;
#[cfg(not(unix))]
const PART: usize = 512;

pub(super) static STDERR: Stream = Stream::new(2, |part| io::stderr().write_all(part));
pub(super) static STDOUT: Stream = Stream::new(1, |part| {
    let mut out = io::stdout().lock();
    out.write_all(part)?;
    out.flush()
});

/// An output of the process.
pub(super) struct Stream {
    /// The stream's file descriptor.
    number: i32,
    write: fn(&[u8]) -> io::Result<()>,
    /// The last part found no room.
    is_full: AtomicBool,
}

impl Stream {
    const fn new(number: i32, write: fn(&[u8]) -> io::Result<()>) -> Self {
        Self {
            number,
            write,
            is_full: AtomicBool::new(false),
        }
    }

    /// Writes the bytes; the rest of them is dropped where a part finds no room or fails. One
    /// thread at a time may call: between the look and the write nobody else may take the room.
    pub fn offer(&self, bytes: &[u8]) {
        for part in bytes.chunks(PART) {
            if !self.has_room() || (self.write)(part).is_err() {
                return;
            }
        }
    }

    fn has_room(&self) -> bool {
        let time = match self.is_full.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => PATIENCE,
        };
        let room = has_room_within(self.number, time);
        self.is_full.store(!room, Ordering::Relaxed);
        room
    }
}

/// True if a write of a part would not wait. A stream that is closed or fails does not make it wait
/// either.
#[expect(unsafe_code, reason = "poll is a call of the C library")]
#[cfg(unix)]
fn has_room_within(number: i32, time: Duration) -> bool {
    let mut asked = libc::pollfd {
        fd: number,
        events: libc::POLLOUT,
        revents: 0,
    };
    loop {
        // SAFETY: the call reads and writes the one structure.
        let ready = unsafe { libc::poll(&raw mut asked, 1, time.as_millis() as i32) };
        let interrupted = || io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if ready >= 0 || !interrupted() {
            return ready > 0;
        }
    }
}

#[cfg(not(unix))]
fn has_room_within(_: i32, _: Duration) -> bool {
    true
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::pipe;
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_full_pipe_has_no_room_and_a_closed_one_does_not_wait() {
        let (reader, mut writer) = pipe().unwrap();
        let number = writer.as_raw_fd();
        while has_room_within(number, Duration::ZERO) {
            writer.write_all(&[b'x'; PART]).unwrap();
        }
        let stream = Stream::new(number, |_| panic!("a write would wait"));
        let start = Instant::now();
        (0..100).for_each(|_| stream.offer(b"a line\n"));
        let waited = start.elapsed();
        assert!(waited >= PATIENCE && waited < 50 * PATIENCE, "{waited:?}");
        drop(reader);
        assert!(has_room_within(number, Duration::ZERO));
    }
}
