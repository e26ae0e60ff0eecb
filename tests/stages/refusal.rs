//! Commands that must fail.

use crate::support::Workspace;

/// Runs a command that must fail, and checks that its message contains these parts.
#[track_caller]
pub fn refused(workspace: &Workspace, arguments: &str, says: &[&str]) {
    workspace.run(arguments).assert_refused(says);
}
