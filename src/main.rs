//! The command line of trackalert: hands the arguments to [`trackalert::cli`] and returns its exit code.

fn main() -> std::process::ExitCode {
    trackalert::cli::main()
}
