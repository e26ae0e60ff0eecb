//! After any damage by a crash or a disk, the newest whole checkpoint is used.

use std::fs::File;

use super::*;

fn save(checkpoints: &Checkpoints, step: u64) {
    let mut writer = checkpoints.writer(step).unwrap();
    writer
        .add_file("weights.bin", |file| file.write_all(&[step as u8; 1000]))
        .unwrap();
    writer
        .commit(&serde_json::json!({ "step": step, "kl_coef": 0.1 + 0.2 }))
        .unwrap();
}

fn saved(steps: &[u64]) -> (tempfile::TempDir, Checkpoints) {
    let root = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(&root.path().join("checkpoints")).unwrap();
    steps.iter().for_each(|step| save(&checkpoints, *step));
    (root, checkpoints)
}

fn file(checkpoints: &Checkpoints, step: u64, name: &str) -> PathBuf {
    checkpoints.folder.join(folder_name(step)).join(name)
}

/// Step 20 was damaged: 10 must be found and 20 reported with `reason`.
fn assert_falls_back(checkpoints: &Checkpoints, reason: &str) {
    let latest = checkpoints.resume().unwrap();
    assert_eq!(
        latest.checkpoint.map(|checkpoint| checkpoint.step),
        Some(10)
    );
    let [warning] = latest.passed_over.as_slice() else {
        panic!("{:?}", latest.passed_over)
    };
    assert!(
        warning.contains("step-00000020") && warning.contains(reason),
        "{warning}"
    );
}

#[test]
fn what_was_committed_is_read_back() {
    let (_root, checkpoints) = saved(&[3, 20]);
    let latest = checkpoints.resume().unwrap().checkpoint.unwrap();
    assert_eq!(latest.step, 20);
    assert_eq!(fs::read(latest.path("weights.bin")).unwrap(), [20; 1000]);
    let state: serde_json::Value = latest.state().unwrap();
    assert_eq!(state["step"], 20);
    assert_eq!(
        state["kl_coef"].as_f64().map(f64::to_bits),
        Some((0.1 + 0.2f64).to_bits())
    );
    assert!(
        latest
            .state::<Vec<u8>>()
            .unwrap_err()
            .to_string()
            .contains("--fresh")
    );
}

#[test]
fn floats_keep_their_bits() {
    let root = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(root.path()).unwrap();
    // A multiplicative congruence walks through 2000 doubles between 0 and 1 of all mantissas.
    let values: Vec<f64> = (1..2000u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64 * 1e-3)
        .collect();
    let checkpoint = checkpoints.writer(1).unwrap().commit(&values).unwrap();
    let read: Vec<f64> = checkpoint.state().unwrap();
    let differing = values
        .iter()
        .zip(&read)
        .filter(|(a, b)| a.to_bits() != b.to_bits())
        .count();
    assert_eq!(differing, 0, "serde_json needs its feature float_roundtrip");
}

#[test]
fn a_truncated_file_is_passed_over() {
    let (_root, checkpoints) = saved(&[10, 20]);
    let weights = file(&checkpoints, 20, "weights.bin");
    File::options()
        .write(true)
        .open(weights)
        .unwrap()
        .set_len(999)
        .unwrap();
    assert_falls_back(&checkpoints, "weights.bin: 999 bytes, expected 1000");
}

#[test]
fn a_flipped_bit_is_passed_over() {
    for name in ["weights.bin", "state.json"] {
        let (_root, checkpoints) = saved(&[10, 20]);
        let path = file(&checkpoints, 20, name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[10] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_falls_back(&checkpoints, "checksum");
    }
}

#[test]
fn a_missing_file_or_manifest_is_passed_over() {
    for name in ["weights.bin", "state.json", "manifest.json"] {
        let (_root, checkpoints) = saved(&[10, 20]);
        fs::remove_file(file(&checkpoints, 20, name)).unwrap();
        assert_falls_back(&checkpoints, name);
    }
}

#[test]
fn a_manifest_of_another_step_is_passed_over() {
    let (_root, checkpoints) = saved(&[10, 20]);
    fs::copy(
        file(&checkpoints, 10, "manifest.json"),
        file(&checkpoints, 20, "manifest.json"),
    )
    .unwrap();
    assert_falls_back(&checkpoints, "does not describe step 20");
}

#[test]
fn a_crash_before_the_rename_leaves_the_older_one() {
    let (_root, checkpoints) = saved(&[10]);
    let mut writer = checkpoints.writer(20).unwrap();
    writer
        .add_file("weights.bin", |file| file.write_all(b"half"))
        .unwrap();
    let beside = writer.beside.clone();
    // A killed process drops nothing.
    std::mem::forget(writer);
    assert!(beside.exists());
    let reopened = Checkpoints::open(&checkpoints.folder).unwrap();
    assert!(!beside.exists());
    let latest = reopened.resume().unwrap();
    assert_eq!(
        latest.checkpoint.map(|checkpoint| checkpoint.step),
        Some(10)
    );
    assert_eq!(latest.passed_over, Vec::<String>::new());
}

#[test]
fn a_failed_write_leaves_nothing() {
    let (_root, checkpoints) = saved(&[10]);
    let mut writer = checkpoints.writer(20).unwrap();
    let failed = writer.add_file("weights.bin", |_| Err(io::Error::other("disk full")));
    assert!(failed.unwrap_err().to_string().contains("disk full"));
    drop(writer);
    assert_eq!(fs::read_dir(&checkpoints.folder).unwrap().count(), 1);
}

#[test]
fn the_same_step_again_replaces() {
    let (_root, checkpoints) = saved(&[10]);
    checkpoints.writer(10).unwrap().commit(&"second").unwrap();
    let latest = checkpoints.resume().unwrap().checkpoint.unwrap();
    assert_eq!(latest.state::<String>().unwrap(), "second");
    assert_eq!(fs::read_dir(&checkpoints.folder).unwrap().count(), 1);
}

#[test]
fn a_crash_while_the_same_step_replaces_leaves_one_of_the_two() {
    let (_root, checkpoints) = saved(&[10]);
    let mut writer = checkpoints.writer(10).unwrap();
    writer.add_json("more.json", &1).unwrap();
    std::mem::forget(writer);
    let old = checkpoints.folder.join(".tmp-step-00000010.old");
    fs::rename(checkpoints.folder.join(folder_name(10)), old).unwrap();
    let reopened = Checkpoints::open(&checkpoints.folder).unwrap();
    let latest = reopened.resume().unwrap();
    assert_eq!(latest.checkpoint.map(|c| c.step), Some(10));
    assert_eq!(fs::read_dir(&checkpoints.folder).unwrap().count(), 1);
}

#[test]
fn pruning_keeps_the_last_and_the_milestones() {
    let (_root, checkpoints) = saved(&[10, 20, 30, 40, 50]);
    checkpoints.prune(2, 20).unwrap();
    assert_eq!(checkpoints.steps().unwrap(), [20, 40, 50]);
    checkpoints.prune(0, 0).unwrap();
    assert_eq!(checkpoints.steps().unwrap(), [50]);
}

#[test]
fn damaged_checkpoints_do_not_crowd_out_whole_ones() {
    let (_root, checkpoints) = saved(&[100, 150, 200]);
    for step in [150, 200] {
        fs::remove_file(file(&checkpoints, step, "weights.bin")).unwrap();
    }
    let latest = checkpoints.resume().unwrap();
    assert_eq!(latest.checkpoint.map(|c| c.step), Some(100));
    for (line, step) in latest.passed_over.iter().zip([200, 150]) {
        assert!(
            line.contains(&format!("{}.unusable: weights.bin", folder_name(step))),
            "{line}"
        );
    }
    save(&checkpoints, 110);
    checkpoints.prune(2, 0).unwrap();
    assert_eq!(checkpoints.steps().unwrap(), [100, 110]);
    let latest = checkpoints.resume().unwrap();
    assert_eq!(latest.checkpoint.map(|c| c.step), Some(110));
    assert_eq!(latest.passed_over, Vec::<String>::new());
}

#[test]
fn file_names_stay_inside_the_folder() {
    let (_root, checkpoints) = saved(&[]);
    let mut writer = checkpoints.writer(1).unwrap();
    for name in ["../x", "a/b", "", "manifest.json", ".hidden"] {
        assert!(writer.add_json(name, &1).is_err(), "{name}");
    }
}

/// Changes the manifest of step 20, beside a whole checkpoint of step 10.
fn with_manifest(change: impl FnOnce(&mut serde_json::Value)) -> (tempfile::TempDir, Checkpoints) {
    let (root, checkpoints) = saved(&[10, 20]);
    let file = file(&checkpoints, 20, MANIFEST);
    let mut manifest = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(&file, manifest.to_string()).unwrap();
    (root, checkpoints)
}

#[test]
fn a_manifest_of_another_format_or_without_state_is_passed_over() {
    let (_root, checkpoints) = with_manifest(|manifest| manifest["format"] = 2.into());
    assert_falls_back(&checkpoints, "format 2");
    let (_root, checkpoints) = with_manifest(|manifest| {
        manifest["files"].as_object_mut().unwrap().remove(STATE);
    });
    assert_falls_back(&checkpoints, "does not describe step 20");
}

#[test]
fn a_manifest_that_names_files_elsewhere_is_passed_over() {
    let (_root, checkpoints) = with_manifest(|manifest| {
        let files = manifest["files"].as_object_mut().unwrap();
        let state = files[STATE].clone();
        files.insert("../step-00000010/state.json".to_owned(), state);
    });
    assert_falls_back(&checkpoints, "is not a file of the checkpoint");
}

#[cfg(unix)]
#[test]
fn a_link_in_place_of_a_file_is_passed_over() {
    let (root, checkpoints) = saved(&[10, 20]);
    let (weights, elsewhere) = (file(&checkpoints, 20, "weights.bin"), root.path().join("w"));
    fs::rename(&weights, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &weights).unwrap();
    assert_falls_back(&checkpoints, "weights.bin: this is a link");
}

#[test]
fn a_file_name_is_used_once() {
    let (_root, checkpoints) = saved(&[]);
    let mut writer = checkpoints.writer(1).unwrap();
    writer.add_json("a.json", &1).unwrap();
    assert!(writer.add_json("a.json", &2).is_err());
}

#[test]
fn a_folder_of_another_spelling_is_no_checkpoint() {
    let (_root, checkpoints) = saved(&[10]);
    let folder = checkpoints.folder.join(folder_name(10));
    fs::rename(folder, checkpoints.folder.join("step-10")).unwrap();
    assert_eq!(checkpoints.resume().unwrap().checkpoint, None);
    assert!(!are_in(&checkpoints.folder));
}
