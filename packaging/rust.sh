# Sourced by scripts that build: makes `cargo` available, and says what to do when it cannot.
# The project needs Rust 1.88 or newer; Debian 12's own is older, so rustup's toolchain is preferred.
PATH=$HOME/.cargo/bin:$PATH
if ! command -v cargo >/dev/null; then
    echo "no cargo found: install Rust 1.88 or newer (https://rustup.rs, or Debian 13's packages rustc and cargo) and run this again" >&2
    exit 1
fi
