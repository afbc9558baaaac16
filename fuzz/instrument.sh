#!/bin/sh
# RUSTC_WRAPPER of `fuzz/run.sh`: compiles this project's crates with the marks that libFuzzer counts and compares, and nothing else, so
# that the crates of others are the very ones of the main build. The flags are those of cargo-fuzz; stable Rust has them all.
rustc=$1
shift
case ${CARGO_CRATE_NAME:-}:${CARGO_PKG_NAME:-} in
build_script_*) ;;
*:amphipod-*)
    if [ "$CARGO_PKG_NAME" = amphipod-fuzz ]; then
        # libFuzzer looks up functions of the C library at run time, which a static program cannot.
        for arg; do
            shift
            [ "$arg" != target-feature=+crt-static ] || arg=target-feature=-crt-static
            set -- "$@" "$arg"
        done
    fi
    set -- "$@" --cfg fuzzing -C passes=sancov-module
    for arg in level=4 inline-8bit-counters pc-table trace-compares; do
        set -- "$@" -C llvm-args=-sanitizer-coverage-$arg
    done
    ;;
esac
exec "$rustc" "$@"
