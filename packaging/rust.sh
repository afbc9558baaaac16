# Sourced by scripts that build, after lib.sh: makes a `cargo` that is new enough available, and says what to do when it cannot.
# Tried in this order: cargo in PATH, cargo of rustup in the home directory (also of the user behind sudo), Debian's packages.
# (Debian 12 has an old `rustc`, and a new one under the name `rustc-web`, kept up for web browsers by its security team.)

# cargo_suffices CARGO: whether this cargo runs and is not older than the workspace's `rust-version`.
cargo_suffices() {
    local have
    have=$("$1" --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
    [ -n "$have" ] && newer_or_same "$have" "$rust_wanted"
}

# The first Debian package among cargo and cargo-web whose version suffices.
debian_cargo() {
    local package version
    for package in cargo cargo-web; do
        version=$(apt-cache policy "$package" 2>/dev/null | sed -n 's/^ *Candidate: \([0-9][0-9.]*\).*/\1/p')
        # Debian numbered cargo 0.N for Rust 1.(N-1) until 2023.
        if [ -n "$version" ] && [ "${version%%.*}" != 0 ] && newer_or_same "$version" "$rust_wanted"; then
            echo "$package"
            return
        fi
    done
}

find_cargo() {
    local home package
    cargo_suffices cargo && return
    for home in "$HOME" "$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)"; do
        if cargo_suffices "$home/.cargo/bin/cargo"; then
            PATH=$home/.cargo/bin:$PATH
            return
        fi
    done
    if command -v apt-get >/dev/null; then
        apt_update
        package=$(debian_cargo)
        if [ -n "$package" ]; then
            # --no-remove: an old cargo that somebody put here on purpose is not replaced behind their back.
            install_packages --no-remove "$package" "${package/cargo/rustfmt}"
            cargo_suffices cargo && return
        fi
    fi
    die "there is no Rust $rust_wanted or newer on this machine" \
        "install it (https://rustup.rs; or Debian's packages: cargo-web on Debian 12 with its security updates), then run this again"
}

rust_wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$project/Cargo.toml")
find_cargo
# Where the linker finds libseccomp.a (.cargo/config.toml knows x86-64's place only).
export LIBSECCOMP_LIB_PATH=/usr/lib/$(gcc -dumpmachine)
