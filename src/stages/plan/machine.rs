//! Compares the memory and disk space of a plan with those of this machine.
//!
//! The limit on memory is the GPU's, or the machine's or that of its control group, with swap. The
//! disk must have room for the checkpoints that are kept at once and the final models. Not counted:
//! the program, data, logs, and checkpoints kept by `keep_every`.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::StagePlan;
use crate::config::{Config, Device, SaveDtype, Stage, Training, TrainingLength};
use crate::ops::backend::device_bytes;
use crate::terminal;
use crate::train::memory;
use crate::train::run_folder::Existing;

const GIB: f64 = (1u64 << 30) as f64;

/// The memory of a plan that must fit on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBound {
    /// All of it: the memory for the longest sequences that the configuration allows.
    Longest,
    /// Weights, gradients and moments, which a stage needs whatever its records are. A note says if
    /// the longest sequences may not fit.
    Certain,
}

/// Checks that the plans fit on this machine, as far as the system reports its memory and disk.
///
/// # Errors
/// The first stage that does not fit in memory, or the run on the disk, with both numbers.
pub fn check(
    config: &Config,
    plans: &[StagePlan],
    bound: MemoryBound,
    run: Existing,
) -> Result<()> {
    plans
        .iter()
        .try_for_each(|plan| check_memory(config, plan, bound))?;
    let folder = config.run.folder();
    match free_disk(&folder) {
        Some(free) => {
            // A run that is continued has written some of its files.
            let written = match run {
                Existing::Continue => folder_bytes(&folder),
                Existing::SetAside => 0,
            };
            check_disk(config, plans, written, free)
        }
        None => Ok(()),
    }
}

/// Checks that a plan fits in the memory of this machine, as far as the system reports it. The
/// system would kill a process that takes more, without a message.
///
/// # Errors
/// If it does not fit, with both numbers.
pub fn check_memory(config: &Config, plan: &StagePlan, bound: MemoryBound) -> Result<()> {
    let device = config.run.device;
    let (most, place) = match device {
        Device::Cpu => (memory::limit_bytes(), "this machine"),
        _ => (device_bytes(device), "the GPU"),
    };
    match most {
        Some(most) => check_within(plan, most, place, bound),
        None => Ok(()),
    }
}

fn check_within(plan: &StagePlan, most: u64, place: &str, bound: MemoryBound) -> Result<()> {
    let (needed, certain) = (plan.peak_bytes() as u64, plan.roles_bytes() as u64);
    if needed <= most {
        return Ok(());
    }
    let stage = plan.stage;
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / GIB);
    let (needed, most_gib) = (gib(needed), gib(most));
    if bound == MemoryBound::Certain && certain <= most {
        terminal::note_once(format!(
            "{stage}: its longest sequences would take {needed} of memory at once, and {place} has \
             {most_gib}; if it runs out of memory, lower {stage}.micro_batch_tokens"
        ));
        return Ok(());
    }
    let fewer = match stage {
        Stage::Pretrain => {
            "make the model smaller (model.hidden_size, intermediate_size, num_hidden_layers)"
        }
        _ => "train fewer weights (lora, trunk_layers)",
    };
    bail!(
        "stage {stage} needs {needed} of memory at once, and {place} has {most_gib}; lower \
         {stage}.micro_batch_tokens, set {stage}.recompute = \"block\", or {fewer}"
    )
}

fn check_disk(config: &Config, plans: &[StagePlan], written: u64, free: u64) -> Result<()> {
    let needed: u64 = plans.iter().map(|plan| stage_bytes(config, plan)).sum();
    let left = needed.saturating_sub(written);
    if left > free {
        bail!(
            "{}: checkpoints and final models take {:.1} GiB more, and {:.1} GiB are free on this \
             disk; lower keep_last, or set run.dir to another disk",
            config.run.folder().display(),
            left as f64 / GIB,
            free as f64 / GIB
        );
    }
    Ok(())
}

/// Bytes that a stage writes: the checkpoints that are kept, one more that is written before the
/// oldest is removed, and the final model.
fn stage_bytes(config: &Config, plan: &StagePlan) -> u64 {
    let trained: usize = plan.roles.iter().map(|r| r.gradients() + r.moments()).sum();
    let kept = config.training(plan.stage).map_or(0, checkpoints);
    let bytes_of_f32 = match config.model.save_dtype {
        SaveDtype::Float32 => 1,
        SaveDtype::Bfloat16 | SaveDtype::Float16 => 2,
    };
    let model = plan.roles.first().map_or(0, |role| role.weights());
    (trained.saturating_mul(kept) + model / bytes_of_f32) as u64
}

/// The number of checkpoints on the disk at once: those that are kept and the one being written, or
/// as many as the steps make. The last step makes one.
fn checkpoints(training: &Training) -> usize {
    let made = match (training.length(), training.save_steps) {
        (TrainingLength::Steps(steps), 1..) => steps / training.save_steps + 1,
        _ => 1,
    };
    made.min(training.keep_last + 1)
}

/// Bytes of all files below a folder; 0 if it does not exist.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

/// Bytes that are free for this user on the disk of `folder`, or of its nearest existing parent.
#[expect(unsafe_code, reason = "statvfs is a call of the C library")]
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn free_disk(folder: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;

    let folder = std::path::absolute(folder).ok()?;
    let existing = folder.ancestors().find(|folder| folder.is_dir())?;
    let path = std::ffi::CString::new(existing.as_os_str().as_bytes()).ok()?;
    // SAFETY: a struct of plain numbers, for which zeros are a value.
    let mut disk: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in zero, and the call writes to `disk` alone.
    let asked = unsafe { libc::statvfs(path.as_ptr(), &raw mut disk) };
    (asked == 0).then(|| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn free_disk(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::plan::{BufferPhase, PlannedBuffer};

    fn plan(bytes: usize) -> StagePlan {
        let name = "activations".to_owned();
        let phase = BufferPhase::Update;
        StagePlan {
            stage: Stage::Sft,
            roles: Vec::new(),
            buffers: vec![PlannedBuffer { name, bytes, phase }],
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_plan_beyond_the_machine_is_refused_with_both_numbers() {
        let check = |bytes, bound| check_within(&plan(bytes), 23 << 30, "this machine", bound);
        assert!(check(23 << 30, MemoryBound::Longest).is_ok());
        let error = check(139 << 30, MemoryBound::Longest).unwrap_err();
        let error = error.to_string();
        for part in [
            "stage sft",
            "139.0 GiB",
            "23.0 GiB",
            "sft.micro_batch_tokens",
        ] {
            assert!(error.contains(part), "{error}");
        }
        // Activations of the longest sequences are not certain to come.
        assert!(check(139 << 30, MemoryBound::Certain).is_ok());
    }

    #[test]
    fn checkpoints_are_as_many_as_the_steps_make_and_no_more_than_are_kept() {
        let training = |max_steps, save_steps| Training {
            max_steps,
            save_steps,
            keep_last: 2,
            ..Training::default()
        };
        let counts = [(50, 100), (250, 100), (1000, 100), (1000, 0)];
        let counts = counts.map(|(steps, every)| checkpoints(&training(steps, every)));
        assert_eq!(counts, [1, 3, 3, 1]);
    }

    #[test]
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    fn the_disk_of_a_folder_that_is_not_there_yet_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let free = free_disk(&folder.path().join("runs/new")).unwrap();
        assert!(free > 0);
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/b"), [0; 1000]).unwrap();
        assert_eq!(folder_bytes(folder.path()), 1000);
    }
}
