//! The `wice` binary.

fn main() -> std::process::ExitCode {
    wice::cli::main()
}
