//! `kiovec`: the command line.

fn main() -> std::process::ExitCode {
    kiovec_tools::main()
}
