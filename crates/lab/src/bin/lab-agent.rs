//! The agent inside of the lab: see `smartvm_lab::agent`.

fn main() -> std::io::Result<()> {
    smartvm_lab::agent::main()
}
