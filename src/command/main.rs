//! `vfpool`: the admin's command.

use std::process::ExitCode;

fn main() -> ExitCode {
    command::run(std::env::var_os("VFPOOL_ROOT"))
}
