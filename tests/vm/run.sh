#!/usr/bin/env bash
# Boots a whole Debian 12 in a virtual machine and checks there what the machine that runs the tests cannot show: systemd, cgroup v2 alone, WireGuard.
#
#   tests/vm/run.sh                              all checks: those in tests/vm/checks, each in a machine of its own
#   tests/vm/run.sh quickstart packages          some of them
#   tests/vm/run.sh --binary PATH ...            with a binary that is already built; without it, the debug build of this clone
#   tests/vm/run.sh --tests NAME systems         of the whole-system tests only those whose names contain NAME
#
# Slow, for QEMU emulates the processor (no /dev/kvm is used): minutes for each check. Not a part of tests/run.sh. Needs root on Debian 12
# or newer with Debian's packages in reach, 3 GB of disk in target/vm, 3 GB of memory. The machine has no way out: it is put together here (debootstrap,
# once; remove target/vm to do it again), and QEMU's user network keeps everything inside. Nothing of it is installed on this machine but the
# packages debootstrap, qemu-system-x86 and busybox-static.
set -euo pipefail
cd "$(dirname "$0")/../.."
project=$PWD
. packaging/lib.sh

binary='' wanted=() filter=''
while [ $# -gt 0 ]; do
    case $1 in
    --binary) binary=$(realpath "${2:?--binary needs a path}"); shift ;;
    --tests) filter=${2:?--tests needs a name}; shift ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) die "unknown option $1" "see tests/vm/run.sh --help" ;;
    *) [ -f "tests/vm/checks/$1.sh" ] || die "there is no check $1" "there are: $(cd tests/vm/checks && echo *.sh | sed 's/\.sh//g')"; wanted+=("$1") ;;
    esac
    shift
done
[ ${#wanted[@]} -gt 0 ] || mapfile -t wanted < <(cd tests/vm/checks && printf '%s\n' *.sh | sed 's/\.sh$//')
[ "$(uname -m)" = x86_64 ] || die "the machine is emulated as x86-64, with this machine's binaries" "run this on x86-64"
[ "$(id -u)" = 0 ] || die "making Debian's root needs root (debootstrap, chroot)" "run this again with sudo"

step "looking for what the machine needs"
# shellcheck disable=SC2046 # a list of words
install_packages $(missing debootstrap:debootstrap qemu-system-x86_64:qemu-system-x86 busybox:busybox-static mke2fs:e2fsprogs cpio:cpio)
install_kubectl
busybox=$(command -v busybox)
vm=$project/target/vm
root=$vm/root
mkdir -p "$vm"

# What the tests need, of Debian, and what a machine has anyway.
packages=systemd,systemd-sysv,udev,dbus,kmod,iproute2,procps,nftables,iptables,docker-registry,busybox-static,bind9-dnsutils,curl,apache2-utils,bsdutils,util-linux,e2fsprogs,ca-certificates

# Debian's root, with a kernel whose modules are in it; the kernel itself and a small initrd beside it.
make_root() {
    local kernel version
    step "making Debian 12 in $root (once)"
    rm -rf "$root" "$root.done" "$vm/kernel"
    debootstrap --variant=minbase --include="$packages" bookworm "$root" "$(debian_mirror)" >"$vm/debootstrap.log" 2>&1 ||
        die "debootstrap failed" "read $vm/debootstrap.log"
    step "fetching its kernel"
    apt_update
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
    mkdir "$vm/kernel"
    (cd "$vm/kernel" && apt-get -qq -o APT::Sandbox::User=root download "$kernel" && dpkg-deb -x ./*.deb . && rm ./*.deb) ||
        die "could not fetch the kernel ($kernel)" "check that Debian's packages are in reach, then run this again"
    version=$(ls "$vm/kernel/lib/modules")
    cp "$vm/kernel/boot/vmlinuz-$version" "$vm/vmlinuz"
    mkdir -p "$root/lib/modules"
    cp -a "$vm/kernel/lib/modules/$version" "$root/lib/modules/"
    chroot "$root" depmod "$version"

    install -m 755 "$(command -v kubectl)" "$root/usr/local/bin/kubectl"
    echo edge >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 edge\n' >"$root/etc/hosts"
    printf '[Match]\nName=en*\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/20-wired.network"
    chroot "$root" systemd-machine-id-setup >/dev/null 2>&1
    chroot "$root" systemctl --quiet enable systemd-networkd.service
    chroot "$root" systemctl --quiet mask docker-registry.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer getty@tty1.service serial-getty@ttyS0.service 2>/dev/null
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    mkdir -p "$root/project"
    cat >"$root/etc/systemd/system/checks.service" <<'TEXT'
[Unit]
Description=The checks
Wants=network-online.target
After=network-online.target
[Service]
ExecStartPre=mount -o ro /dev/vdb /project
ExecStart=/project/tests/vm/inside.sh
KillMode=process
# A check that cannot begin ends the machine.
FailureAction=poweroff
LimitNOFILE=1048576
TasksMax=infinity
[Install]
WantedBy=multi-user.target
TEXT
    chroot "$root" systemctl --quiet enable checks.service
    touch "$root.done"
}

# Just enough to find the disk.
make_initrd() {
    local dir=$vm/initrd module
    # In the order in which they need each other.
    local modules='virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk'
    rm -rf "$dir"
    mkdir -p "$dir"/{bin,proc,sys,dev,new}
    cp "$busybox" "$dir/bin/busybox"
    for module in $modules; do
        find "$vm/kernel/lib/modules" -name "$module.ko" -exec cp {} "$dir/" \;
    done
    cat >"$dir/init" <<TEXT
#!/bin/busybox sh
cd /
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in $modules; do /bin/busybox insmod /\$module.ko; done
until [ -b /dev/vda ]; do /bin/busybox usleep 10000; done
/bin/busybox mount -t ext4 /dev/vda /new
/bin/busybox umount /proc
/bin/busybox mount --move /dev /new/dev
exec /bin/busybox switch_root /new /lib/systemd/systemd
TEXT
    chmod 755 "$dir/init"
    (cd "$dir" && find . | cpio --quiet -o -H newc | gzip -1) >"$vm/initrd.gz"
}

[ -e "$root.done" ] || make_root
make_initrd
if [ ! -e "$vm/disk.img" ] || [ "$root.done" -nt "$vm/disk.img" ]; then
    rm -f "$vm/disk.img"
    mke2fs -q -t ext4 -d "$root" "$vm/disk.img" 6G >/dev/null
fi

# What is under test, on a second disk: the clone, the binary, the packages, and programs of tests.
step "looking for what is tested"
case " ${wanted[*]} " in
*' systems '*)
    . packaging/rust.sh
    [ -n "$binary" ] || cargo build --locked --quiet --bin amphipod
    cargo build --locked --quiet -p amphipod-tests --bins
    programs=$(cargo test --locked --quiet -p amphipod-tests -p amphipod-netplug --no-run --message-format=json |
        sed -n 's/.*"kind":\["test"\].*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1 \2/p')
    ;;
esac
if [ -z "$binary" ]; then
    . packaging/rust.sh
    cargo build --locked --quiet --bin amphipod
    binary=${CARGO_TARGET_DIR:-$project/target}/$(rustc -vV | sed -n 's/^host: //p')/debug/amphipod
fi
[ -x "$binary" ] || die "$binary is not an executable file"
goods=$vm/goods
rm -rf "$goods"
mkdir -p "$goods/test-programs"
git ls-files -z -co --exclude-standard packaging docs README.md Cargo.toml tests/vm | xargs -0 cp --parents -t "$goods"
cp "$binary" "$goods/amphipod"
case " ${wanted[*]} " in
*' packages '*)
    packaging/build-packages.sh --binary "$binary" >"$vm/packages.log" 2>&1 || die "making the packages failed" "read $vm/packages.log"
    cp target/packages/*.deb "$goods/"
    ;;
esac
if [ -n "${programs:-}" ]; then
    built=${CARGO_TARGET_DIR:-$project/target}/$(rustc -vV | sed -n 's/^host: //p')/debug
    cp "$built"/{peer,amphipod-box,amphipod-fleet,amphipod-clock} "$goods/test-programs/"
    while read -r name path; do cp "$path" "$goods/test-programs/$name"; done <<<"$programs"
    strip --strip-debug "$goods"/test-programs/*
fi
rm -f "$vm/goods.img"
mke2fs -q -t ext4 -d "$goods" "$vm/goods.img" "$(($(du -sm "$goods" | cut -f1) * 11 / 10 + 64))M" >/dev/null

failed=()
for check in "${wanted[@]}"; do
    step "a machine for: $check (its console is $vm/$check.console)"
    result=$vm/$check.result
    : >"$result"
    tail -n +1 -f "$result" &
    tail=$!
    # What is written to the disks is gone with the machine. A machine that hangs ends after two hours.
    timeout 2h nice -n 5 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 3072 -display none -nodefaults \
        -kernel "$vm/vmlinuz" -initrd "$vm/initrd.gz" \
        -append "console=ttyS0 rw loglevel=4 systemd.show_status=1 mitigations=off panic=-1 check=$check tests=$filter" \
        -drive "file=$vm/disk.img,if=virtio,format=raw,snapshot=on,cache=unsafe" -drive "file=$vm/goods.img,if=virtio,format=raw,readonly=on" \
        -nic user,model=virtio-net-pci,restrict=on,ipv6=off -device virtio-rng-pci \
        -serial "file:$vm/$check.console" -monitor none \
        -device virtio-serial-pci -chardev "file,id=result,path=$result" -device virtserialport,chardev=result,name=result </dev/null ||
        echo "the machine ended with $?" >>"$result"
    sleep 0.5
    kill $tail
    wait $tail 2>/dev/null || true
    grep -q '^everything holds' "$result" || failed+=("$check")
done
step "done"
[ ${#failed[@]} = 0 ] || die "not everything holds in: ${failed[*]}" "what failed is told above; the rest is in $vm/*.console"
