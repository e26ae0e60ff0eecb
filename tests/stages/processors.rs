//! The arithmetic of products: the fastest of this processor, or the one that every processor has.

use std::fs;

use kernels::host::product::ProductKernel;

use crate::on_policy::{assert_start_on_policy, iterations};
use crate::support::Workspace;

const PORTABLE: &str = "--set run.arithmetic=portable";

#[test]
fn portable_products_start_every_iteration_on_policy() {
    let lines = iterations(&Workspace::trained(), "portable", PORTABLE);
    assert_start_on_policy(&lines, PORTABLE);
}

/// The choice changes bits only on a processor that has something faster than chains.
#[test]
fn the_choice_matters_where_the_processor_has_one() {
    let workspace = Workspace::trained();
    workspace.succeed("sft config.toml --set run.name=fast");
    workspace.succeed(&format!(
        "sft config.toml --set run.name=portable {PORTABLE}"
    ));
    let same = workspace.weights("fast", "sft") == workspace.weights("portable", "sft");
    assert_eq!(same, ProductKernel::fastest() == ProductKernel::Chains);
}

#[test]
fn a_run_keeps_to_its_choice() {
    let workspace = Workspace::trained();
    workspace.succeed("sft config.toml --set run.name=trial --set sft.max_steps=2");
    let ended = workspace.run(&format!("sft config.toml --set run.name=trial {PORTABLE}"));
    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains("run.arithmetic"), "{}", ended.stderr);
}

/// A run that was begun on another processor: the note in its folder names an arithmetic that this
/// processor does not use.
#[test]
fn a_run_that_comes_from_another_processor_says_so() {
    let workspace = Workspace::trained();
    let command = |steps: usize| {
        format!(
            "sft config.toml --set run.name=trial --set sft.lr_scheduler_type=constant \
             --set sft.max_steps={steps}"
        )
    };
    let sft = |steps: usize| workspace.succeed(&command(steps)).stderr;
    sft(2);
    assert!(!sft(3).contains("began with"));
    let note = workspace.stage("trial", "sft").join("arithmetic");
    let own = fs::read_to_string(&note).expect("a note");
    assert_eq!(own.trim(), ProductKernel::fastest().name());
    fs::write(&note, "elsewhere\n").expect("a note");
    let said = sft(4);
    assert!(
        said.contains("began with matrix products by elsewhere"),
        "{said}"
    );
    fs::remove_file(&note).expect("a note");
    let ended = workspace.run(&command(5));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let says = "arithmetic: cannot be read; start the stage over with --fresh";
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
}
