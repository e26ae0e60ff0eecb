//! NVRTC compiles every kernel for the architectures that are supported, without a register spilled
//! to memory. It needs no GPU, only libnvrtc: see `.ci/nvrtc`.

#![cfg(feature = "cuda")]

use std::io::Write;

use kernels::device::driver::{Architecture, compile, version};
use kernels::device::{Kernel, SOURCES, Source};

/// Compute capabilities 8.0 (A100), 8.9 (RTX 40), and 9.0 (H100, H200).
const CAPABILITIES: [u32; 3] = [80, 89, 90];

/// The assembler's figures of a kernel.
#[derive(Debug, Default)]
struct Figures {
    kernel: String,
    registers: u32,
    /// Bytes that a thread keeps in memory for want of registers, or because it indexes them.
    stack: u32,
    spilled: u32,
}

/// Writes past the harness, which keeps what a passing test prints.
fn say(line: &str) {
    std::io::stderr()
        .write_all(format!("{line}\n").as_bytes())
        .unwrap();
}

/// The number before `unit`.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    let (before, _) = line.split_once(unit)?;
    before.trim_end().rsplit(' ').next()?.parse().ok()
}

/// Reads the messages of `ptxas --verbose`.
fn figures(log: &str) -> Vec<Figures> {
    let mut all: Vec<Figures> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            all.push(Figures {
                kernel: rest.split('\'').next().unwrap().to_owned(),
                ..Figures::default()
            });
        }
        let Some(last) = all.last_mut() else { continue };
        if let Some(stack) = number_before(line, "bytes stack frame") {
            last.stack = stack;
            last.spilled = number_before(line, "bytes spill stores").unwrap();
        }
        if let Some(registers) = number_before(line, "registers") {
            last.registers = registers;
        }
    }
    all
}

/// Compiles a source, and returns the names of its kernels.
fn check(source: &Source, capability: u32) -> Vec<String> {
    let architecture = Architecture::Machine(capability);
    let compiled = compile(source, architecture, &["--ptxas-options=-v"]).unwrap();
    assert!(compiled.image.starts_with(b"\x7fELF"));
    let name = |figures: Figures| {
        let Figures {
            kernel,
            registers,
            stack,
            spilled,
        } = figures;
        say(&format!(
            "sm_{capability} {kernel:<32} {registers:>3} registers {stack:>5} bytes of stack"
        ));
        assert_eq!(spilled, 0, "bytes that {kernel} spills for sm_{capability}");
        assert!(registers > 0, "{}", compiled.log);
        kernel
    };
    figures(&compiled.log).into_iter().map(name).collect()
}

#[test]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    // cudarc panics where the library is missing.
    let Ok(version) = std::panic::catch_unwind(version) else {
        say("passed over: compiling the kernels by NVRTC: libnvrtc is not installed");
        return;
    };
    say(&format!("NVRTC {:?}", version.unwrap()));
    let mut listed: Vec<&str> = Kernel::ALL.iter().map(|kernel| kernel.name).collect();
    listed.sort_unstable();
    for capability in CAPABILITIES {
        let of_source = |source| check(source, capability);
        let mut compiled: Vec<String> = SOURCES.iter().flat_map(of_source).collect();
        compiled.sort_unstable();
        assert_eq!(compiled, listed);
    }
}

#[test]
fn a_faulty_source_says_where() {
    if std::panic::catch_unwind(version).is_err() {
        return;
    }
    let source = Source {
        name: "faulty.cu",
        text: "#include \"device.cuh\"\nextern \"C\" __global__ void f(float *x) { y = 1; }",
    };
    let error = compile(&source, Architecture::Ptx(80), &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("faulty.cu(2)") && error.contains("\"y\" is undefined"),
        "{error}"
    );
}

#[test]
fn a_device_newer_than_nvrtc_takes_ptx_and_an_older_one_is_refused() {
    if std::panic::catch_unwind(version).is_err() {
        return;
    }
    assert_eq!(Architecture::of_device(90), Ok(Architecture::Machine(90)));
    assert!(matches!(Architecture::of_device(9990), Ok(Architecture::Ptx(known)) if known >= 90));
    let refused = Architecture::of_device(10).unwrap_err().to_string();
    assert!(refused.contains("compute capability is 1.0"), "{refused}");
}
