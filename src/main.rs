//! The command line of trackalert: hands the arguments to [`trackalert::cli`] and returns its exit code.

/// A report is made on one thread and forgotten on another, thousands of times a second: the system's allocator spends a quarter of all
/// CPU on that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    trackalert::cli::main()
}
