//! Commands that must fail.

use crate::support::Workspace;

/// Runs a command that must fail, and checks that its message contains these parts.
#[track_caller]
pub fn refused(workspace: &Workspace, arguments: &str, says: &[&str]) {
    let ended = workspace.run(arguments);
    assert_eq!(ended.code, Some(1), "{arguments}: {}", ended.stderr);
    assert!(
        !ended.stderr.contains("panicked"),
        "{arguments}: {}",
        ended.stderr
    );
    for part in says {
        assert!(
            ended.stderr.contains(part),
            "{arguments}: no {part:?} in\n{}",
            ended.stderr
        );
    }
}
