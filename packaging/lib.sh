# Sourced by the project's scripts, which set `project` (the root of the clone) first: messages and Debian packages.

# A terminal gets bold; a file gets none.
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; else bold='' plain=''; fi

step() { printf '%s[%3d s]%s %s\n' "$bold" "$SECONDS" "$plain" "$*"; }

# die WHAT [WHAT-TO-DO]
die() {
    printf '\n%s: %s\n' "${0##*/}" "$1" >&2
    [ $# -lt 2 ] || printf '  what to do: %s\n' "$2" >&2
    exit 1
}

# newer_or_same A B: whether version A is not older than version B.
newer_or_same() { [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

apt_updated=''
apt_update() {
    [ -z "$apt_updated" ] || return 0
    command -v apt-get >/dev/null ||
        die "this machine has no apt-get" "install by hand what the README lists under \"Without Debian\", then run this again"
    apt-get -qq -o DPkg::Lock::Timeout=120 update || die "apt-get update failed" "check that Debian's packages are in reach, then run this again"
    apt_updated=yes
}

# install_packages [--no-remove] PACKAGE...
install_packages() {
    [ $# -gt 0 ] || return 0
    apt_update
    local log names
    names=$(printf '%s ' "$@" | sed 's/--[a-z-]* //')
    step "installing Debian's packages: $names"
    log=$(mktemp)
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "could not install $names" "read apt's message above; install them by hand, then run this again"
    fi
    rm -f "$log"
}

# The mirror that this machine takes Debian itself from.
debian_mirror() {
    # shellcheck disable=SC2016 # apt's own variables
    apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' | awk '$2 == "Debian" { print $1; exit }'
}

# missing COMMAND:PACKAGE...: the packages of those commands that this machine lacks.
missing() {
    local pair
    for pair in "$@"; do command -v "${pair%%:*}" >/dev/null || echo "${pair##*:}"; done
}

# What building amphipod needs besides Rust: a C compiler (SQLite, ring), a static C library, a static libseccomp.
install_build_packages() {
    local need
    need=$(missing gcc:gcc)
    [ -e /usr/include/stdlib.h ] || need+=" libc6-dev"
    [ -e /etc/ssl/certs/ca-certificates.crt ] || need+=" ca-certificates"
    [ -n "$(find /usr/lib -name libseccomp.a 2>/dev/null | head -n 1)" ] || need+=" libseccomp-dev"
    # shellcheck disable=SC2086 # a list of words
    install_packages $need
}

# A kubectl that speaks to a v1.36 server. Debian 12's own is 1.20; Debian 13's package runs on Debian 12, too.
install_kubectl() {
    ! command -v kubectl >/dev/null || return 0
    apt_update
    local version dir options
    version=$(apt-cache policy kubectl 2>/dev/null | sed -n 's/^ *Candidate: \([0-9]*:\)\{0,1\}\([0-9][0-9.]*\).*/\2/p')
    if [ -n "$version" ] && newer_or_same "$version" 1.28; then
        install_packages kubectl
        return
    fi
    step "fetching kubectl from Debian 13"
    dir=$(mktemp -d)
    mkdir -p "$dir"/{lists/partial,cache/archives/partial}
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror) trixie main" >"$dir/sources"
    # apt's own download and signature checks, with nothing of it left in this machine's configuration.
    options=(-qq -o Dir::Etc::SourceList="$dir/sources" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$dir/lists"
        -o Dir::Cache="$dir/cache" -o Dir::State::Status=/dev/null -o APT::Sandbox::User=root -o Acquire::Languages=none)
    if ! (cd "$dir" && apt-get "${options[@]}" update && apt-get "${options[@]}" download kubectl) >"$dir/log" 2>&1; then
        cat "$dir/log" >&2
        rm -rf "$dir"
        die "could not fetch kubectl" "install kubectl 1.28 or newer by hand (https://kubernetes.io/docs/tasks/tools/), then run this again"
    fi
    install_packages "$dir"/kubectl_*.deb
    rm -rf "$dir"
}
