//! Compiles the kernels as host code for the emulator.

fn main() {
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-changed=emulator");
    #[cfg(feature = "emulate")]
    emulated();
}

#[cfg(feature = "emulate")]
fn emulated() {
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        // The kernels round each operation, as on the device, unless they call fmaf themselves.
        .flag("-ffp-contract=off")
        .flag_if_supported("-mfma")
        .flag_if_supported("-Wno-unknown-pragmas")
        .include("emulator")
        .file("emulator/kernels.cc")
        .compile("collimate_emulated_kernels");
}
