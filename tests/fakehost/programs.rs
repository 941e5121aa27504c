//! Where the programs are: the product's, which cargo builds before its tests, and the fakes, which are built here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A binary of the product, which cargo has built for the test that runs: two folders above it.
pub(crate) fn product(name: &str) -> PathBuf {
    profile().join(name)
}

/// The library that makes the host's sysfs behave.
pub(crate) fn fake_kernel() -> PathBuf {
    built().join("examples/libfakekernel.so")
}

/// The host's virsh.
pub(crate) fn fake_virsh() -> PathBuf {
    built().join("fakevirsh")
}

/// `target/debug`, or where the profile of this run has its files.
fn profile() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        test.ancestors().nth(2).unwrap().to_owned()
    })
}

/// Builds the fakes beside the product, once in each process: cargo does not build the programs of another package for
/// a test, and finds at once that nothing has changed.
fn built() -> &'static Path {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let name = profile().file_name().unwrap().to_str().unwrap();
        let name = if name == "debug" { "dev" } else { name };
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--locked", "--profile", name]);
        cargo.args(["--bin", "fakevirsh", "--example", "fakekernel", "--target-dir"]);
        let output = cargo.arg(profile().parent().unwrap()).output().unwrap();
        assert!(output.status.success(), "the fake host does not build:\n{}", String::from_utf8_lossy(&output.stderr));
    });
    profile()
}
