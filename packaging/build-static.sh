#!/usr/bin/env bash
# Builds the static release binary and prints its path.
#
#   packaging/build-static.sh            for this machine (x86-64: tried)
#   packaging/build-static.sh aarch64    for 64-bit ARM, with Debian sid's compilers in a folder (not tried yet as a script)
#   packaging/build-static.sh armv7      for 32-bit ARM with hardware floating point (likewise)
#
# --agent-only before the architecture leaves the server out: for boxes that only ever run the agent.
#
# For ARM, Debian's own packages do everything, for rustup's targets may be out of reach: a `debootstrap` of Debian sid in
# target/cross (1.1 GB, two minutes, once) has the compiler, the standard library for the target, and its libseccomp.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
. "$project/packaging/lib.sh"
cd "$project"
exec 3>&1 1>&2 # messages to standard error, the path to standard output

features=()
if [ "${1:-}" = --agent-only ]; then features=(--no-default-features --features agent); shift; fi
case ${1:-$(uname -m)} in
-h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
"$(uname -m)") cross='' ;;
aarch64 | arm64) cross=arm64 triple=aarch64-linux-gnu target=aarch64-unknown-linux-gnu ;;
armv7 | armv7l | armhf) cross=armhf triple=arm-linux-gnueabihf target=armv7-unknown-linux-gnueabihf ;;
*) die "unknown architecture $1" "see packaging/build-static.sh --help" ;;
esac
out=${CARGO_TARGET_DIR:-$project/target}

if [ -z "$cross" ]; then
    install_build_packages
    . packaging/rust.sh
    cargo build --release --locked --bin amphipod ${features[@]+"${features[@]}"}
    echo "$out/$(rustc -vV | sed -n 's/^host: //p')/release/amphipod" >&3
    exit
fi

[ "$(id -u)" = 0 ] || die "building for another architecture needs root (debootstrap, chroot)" "run this again with sudo"
# shellcheck disable=SC2046 # a list of words
install_packages $(missing debootstrap:debootstrap)
. packaging/rust.sh # cargo, to fetch the crates
root=$out/cross
if [ ! -x "$root/usr/bin/cargo" ]; then
    step "making a Debian sid in $root"
    rm -rf "$root"
    debootstrap --variant=minbase --include=rustc,cargo,gcc,libc6-dev,ca-certificates sid "$root" "$(debian_mirror)" >"$out/cross.log" ||
        die "debootstrap failed" "read $out/cross.log"
fi
# Everything that is mounted is mounted in a namespace of its own, which ends with this script.
step "compilers and libraries for $target"
unshare --mount chroot "$root" bash -ec "
    mount -t proc proc /proc
    dpkg --add-architecture $cross
    apt-get -qq -o Acquire::Check-Valid-Until=false update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install libstd-rust-dev:$cross gcc-$triple libc6-dev-$cross-cross libseccomp-dev:$cross
" >>"$out/cross.log" 2>&1 || die "installing the cross compilers failed" "read $out/cross.log"
step "building for $target"
cargo fetch --locked --target "$target"
upper=$(echo "$target" | tr 'a-z-' 'A-Z_')
mkdir -p "$root/project" "$root/crates"
unshare --mount bash -ec "
    mount --bind '$project' '$root/project'
    mount --bind '${CARGO_HOME:-$HOME/.cargo}/registry' '$root/crates'
    mount -t proc proc '$root/proc'
    exec chroot '$root' env HOME=/root CARGO_HOME=/root/.cargo CC_${target//-/_}=$triple-gcc AR_${target//-/_}=$triple-ar \
        CARGO_TARGET_${upper}_LINKER=$triple-gcc LIBSECCOMP_LIB_PATH=/usr/lib/$triple CARGO_TARGET_DIR=/project/target/cross-build \
        bash -ec 'mkdir -p /root/.cargo; ln -sfn /crates /root/.cargo/registry; cd /project
            cargo build --offline --release --locked --bin amphipod --target $target ${features[*]}'
"
echo "$project/target/cross-build/$target/release/amphipod" >&3
