#!/usr/bin/env bash
# Makes amphipod_VERSION_ARCH.deb and amphipod-VERSION-1.ARCH.rpm in target/packages.
#
#   packaging/build-packages.sh                  builds the release binary first
#   packaging/build-packages.sh --binary PATH    packs a binary that is already built (for this machine's architecture)
#
# The packages hold the binary, the units (not enabled: a box may be a server or an agent), a manual page, the licence and
# the changelog. They depend on nothing. Needs dpkg-deb, and Debian's package `rpm` for the .rpm, which it installs.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
. "$project/packaging/lib.sh"

binary=''
while [ $# -gt 0 ]; do
    case $1 in
    --binary) binary=${2:?--binary needs a path}; shift ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown option $1" "see packaging/build-packages.sh --help" ;;
    esac
    shift
done
[ -n "$binary" ] || binary=$("$project/packaging/build-static.sh")
[ -x "$binary" ] || die "$binary is not an executable file"
# shellcheck disable=SC2046 # a list of words
install_packages $(missing rpmbuild:rpm dpkg-deb:dpkg)

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$project/Cargo.toml" | head -n 1)
[ "$("$binary" --version)" = "amphipod $version" ] || die "$binary is $("$binary" --version), this is version $version" "build it again"
deb_arch=$(dpkg --print-architecture)
rpm_arch=$(uname -m)
summary="Kubernetes for the edge in one small static binary"
maintainer="The Amphipod maintainers <maintainers@users.noreply.github.com>"
# Times in the packages are those of the last commit: the same sources give the same packages.
SOURCE_DATE_EPOCH=$(git -C "$project" log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH

out=$project/target/packages
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$out" "$tree"/usr/{bin,lib/systemd/system,share/man/man1,share/doc/amphipod}

# manual: the manual page, from what the program says about itself.
manual() {
    local command
    troff() { sed 's/\\/\\\\/g; s/^\([.'"'"']\)/\\\&\1/; s/-/\\-/g'; }
    echo ".TH AMPHIPOD 1 \"$(LC_ALL=C date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d)\" \"amphipod $version\""
    printf '.SH NAME\namphipod \\- %s\n.SH DESCRIPTION\n.nf\n' "$summary"
    "$binary" --help | troff
    echo .fi
    for command in $("$binary" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'); do
        [ "$command" = help ] || { printf '.SH AMPHIPOD %s\n.nf\n' "${command^^}"; "$binary" "$command" --help | troff; echo .fi; }
    done
    printf '.SH FILES\n.nf\n/etc/amphipod/kubeconfig\n/etc/amphipod/registries.yaml\n/etc/default/amphipod\n/var/lib/amphipod\n.fi\n'
}

install -m 755 "$binary" "$tree/usr/bin/amphipod"
for unit in amphipod amphipod-agent; do
    sed 's,/usr/local/bin/,/usr/bin/,' "$project/packaging/$unit.service" >"$tree/usr/lib/systemd/system/$unit.service"
done
manual | gzip -9n >"$tree/usr/share/man/man1/amphipod.1.gz"
install -m 644 "$project/README.md" "$project"/docs/operations.md "$tree/usr/share/doc/amphipod/"
printf 'amphipod (%s) unstable; urgency=medium\n\n  * The commits of the repository are the changelog.\n\n -- %s  %s\n' \
    "$version" "$maintainer" "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$tree/usr/share/doc/amphipod/changelog.gz"
printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: amphipod\n\nFiles: *\nCopyright: The Amphipod authors\nLicense: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n' \
    >"$tree/usr/share/doc/amphipod/copyright"
find "$tree" -type d -exec chmod 755 {} +
find "$tree" -type f ! -perm -u+x -exec chmod 644 {} +

# What happens around an installation, for both kinds of packages.
after_install='[ ! -d /run/systemd/system ] || systemctl daemon-reload
# An upgrade restarts what runs; pods do not notice.
[ ! -d /run/systemd/system ] || systemctl try-restart amphipod.service amphipod-agent.service'
# Pods cannot outlive the program that looks after them. The state of a server and the data of volumes stay until the package is purged.
before_remove='[ ! -d /run/systemd/system ] || systemctl disable --now amphipod.service amphipod-agent.service 2>/dev/null || true
/usr/bin/amphipod reset --yes --keep-volumes >/dev/null'

deb() {
    local control=$tree/DEBIAN size
    size=$(du -sk "$tree/usr" | cut -f1)
    mkdir -p "$control"
    cat >"$control/control" <<TEXT
Package: amphipod
Version: $version
Architecture: $deb_arch
Maintainer: $maintainer
Installed-Size: $size
Section: admin
Priority: optional
Homepage: https://github.com/amphipod/amphipod
Description: $summary
 A Kubernetes API server, scheduler and controllers on SQLite, and a node agent
 that runs containers directly on the kernel, in one program without
 dependencies. Start it with "systemctl enable --now amphipod".
TEXT
    printf '#!/bin/sh\nset -e\n[ "$1" = configure ] || exit 0\n%s\n' "$after_install" >"$control/postinst"
    printf '#!/bin/sh\nset -e\n[ "$1" = remove ] || exit 0\n%s\n' "$before_remove" >"$control/prerm"
    printf '#!/bin/sh\nset -e\n[ ! -d /run/systemd/system ] || systemctl daemon-reload || true\n[ "$1" = purge ] || exit 0\nrm -rf /var/lib/amphipod /etc/amphipod /run/amphipod\n' >"$control/postrm"
    chmod 755 "$control"/p*
    (cd "$tree" && find usr -type f -exec md5sum {} +) >"$control/md5sums"
    dpkg-deb --root-owner-group -Zxz --build "$tree" "$out/amphipod_${version}_$deb_arch.deb" >/dev/null
    rm -rf "$control"
}

rpm() {
    local spec=$tree.spec top
    top=$(mktemp -d)
    cat >"$spec" <<TEXT
Name: amphipod
Version: $version
Release: 1
Summary: $summary
License: Apache-2.0
URL: https://github.com/amphipod/amphipod
AutoReqProv: no
%description
A Kubernetes API server, scheduler and controllers on SQLite, and a node agent that runs containers directly on the kernel, in one
program without dependencies. Start it with "systemctl enable --now amphipod".
%install
cp -a $tree/usr %{buildroot}/
%files
%attr(755,root,root) /usr/bin/amphipod
/usr/lib/systemd/system/amphipod.service
/usr/lib/systemd/system/amphipod-agent.service
%doc /usr/share/doc/amphipod
/usr/share/man/man1/amphipod.1.gz
%post
$after_install
%preun
[ "\$1" = 0 ] || exit 0
$before_remove
TEXT
    rpmbuild -bb --quiet --target "$rpm_arch" --define "_topdir $top" --define "_rpmdir $out" --define '_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm' \
        --define 'debug_package %{nil}' --define '__os_install_post %{nil}' --define '_build_id_links none' "$spec"
    rm -rf "$top" "$spec"
}

step "the .deb"
deb
step "the .rpm"
rpm
ls -l "$out"
