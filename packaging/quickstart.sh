#!/usr/bin/env bash
# From a clone to served pods on this machine: builds amphipod, installs it, starts an all-in-one box, runs a demo.
#
#   packaging/quickstart.sh                  everything
#   packaging/quickstart.sh --binary PATH    use a binary that is already built
#   packaging/quickstart.sh --no-demo        stop when the node is Ready
#   packaging/quickstart.sh --uninstall      remove every trace
#
# Running it twice is harmless. Needs root on Debian 12 or newer; builds need Debian's packages and crates.io in reach.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
bin=/usr/local/bin/amphipod
config=/etc/amphipod
data=/var/lib/amphipod
log=/var/log/amphipod.log
unit=/etc/systemd/system/amphipod.service
supervisor_pid=/run/amphipod-supervisor.pid
export KUBECONFIG=$config/kubeconfig

step() { printf '\033[1m[%3d s]\033[0m %s\n' "$SECONDS" "$*"; }
die() {
    printf '\nquickstart: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  what to do: %s\n' "$2" >&2
    exit 1
}
with_systemd() { [ -d /run/systemd/system ]; }

supervised() { [ -f "$supervisor_pid" ] && kill -0 "$(cat "$supervisor_pid")" 2>/dev/null; }

stop() {
    if with_systemd && [ -f "$unit" ]; then
        systemctl disable --now --quiet amphipod.service || true
    fi
    if supervised; then
        local pid
        pid=$(cat "$supervisor_pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    fi
    rm -f "$supervisor_pid"
}

start() {
    if with_systemd; then
        install -m 644 "$here/amphipod.service" "$unit"
        systemctl daemon-reload
        systemctl enable --quiet amphipod.service
        systemctl restart amphipod.service
    else
        stop
        # No systemd: a small loop restarts the program when it ends unasked, as the unit would.
        AMPHIPOD=$bin LOG=$log setsid bash -c '
            trap "kill \$child 2>/dev/null; wait \$child; exit 0" TERM INT
            while :; do
                "$AMPHIPOD" server >>"$LOG" 2>&1 & child=$!
                wait $child
                echo "amphipod ended; starting it again in a second" >>"$LOG"
                sleep 1
            done' </dev/null >/dev/null 2>&1 &
        echo $! >"$supervisor_pid"
    fi
}

uninstall() {
    step "stopping amphipod"
    stop
    if [ -x "$bin" ]; then
        step "removing pods, networks, mounts and control groups"
        "$bin" reset --yes
    fi
    step "removing files"
    rm -rf "$unit" "$config" "$data" "$log" "$bin" /run/amphipod
    ! with_systemd || systemctl daemon-reload
    step "amphipod is gone"
}

binary="" demo=yes
while [ $# -gt 0 ]; do
    case $1 in
    --binary) binary=${2:?--binary needs a path}; shift ;;
    --no-demo) demo=no ;;
    --uninstall) mode=uninstall ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown option $1" "see packaging/quickstart.sh --help" ;;
    esac
    shift
done
[ "$(id -u)" = 0 ] || die "this needs root" "run it again with sudo"
if [ "${mode:-}" = uninstall ]; then uninstall; exit 0; fi

if [ -z "$binary" ]; then
    step "installing what the build needs"
    need=()
    command -v gcc >/dev/null || need+=(gcc libc6-dev)
    [ -n "$(find /usr/lib -name libseccomp.a 2>/dev/null | head -n 1)" ] || need+=(libseccomp-dev)
    if [ ${#need[@]} -gt 0 ]; then
        apt-get update -qq || die "apt-get update failed" "check that Debian's packages are in reach, then run this again"
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${need[@]}" >/dev/null ||
            die "could not install ${need[*]}" "install them by hand, then run this again"
    fi
    . "$here/rust.sh"
    step "building the release binary (some minutes the first time)"
    (cd "$here/.." && cargo build --release --locked --bin amphipod) ||
        die "the build failed" "read the compiler's message above; a fresh clone builds with Rust 1.88 or newer"
    binary=$(ls -t "$here"/../target/*/release/amphipod | head -n 1)
fi
[ -x "$binary" ] || die "$binary is not an executable file" "give --binary the path of a built amphipod"

step "installing $bin"
install -m 755 "$binary" "$bin.new"
mv "$bin.new" "$bin"
if ! command -v kubectl >/dev/null; then
    step "installing kubectl"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq kubernetes-client >/dev/null ||
        die "could not install kubectl" "install kubectl by hand, then run this again"
fi

step "starting the all-in-one box"
start
for _ in $(seq 300); do
    ready=$(kubectl get nodes -o 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}' 2>/dev/null || true)
    [ "$ready" != True ] || break
    sleep 0.1
done
[ "$ready" = True ] || die "the node did not become Ready within 30 s" "read $log (or: journalctl -u amphipod)"
step "the node is Ready; kubeconfig: $KUBECONFIG"

if [ "$demo" = yes ]; then
    step "applying the demo: a Deployment with 2 replicas and a Service"
    kubectl apply -f "$here/demo.yaml" || die "the demo was refused" "read the message above"
    kubectl rollout status deployment/hello --timeout=60s ||
        die "the demo did not start" "kubectl describe pods -l app=hello; then read $log"
    step "fetching http://hello.default.svc.cluster.local/ from inside a pod"
    page=""
    for _ in $(seq 50); do
        page=$(kubectl exec deploy/hello -- /amphipod hello --get http://hello.default.svc.cluster.local/ 2>/dev/null) && break
        sleep 0.1
    done
    [ -n "$page" ] || die "the demo's page did not come" "kubectl get endpointslices; then read $log"
    printf '%s\n' "$page"
fi

kubectl get nodes,pods,svc -A
cat <<END

Next:  export KUBECONFIG=$KUBECONFIG
       kubectl create deployment web --image=REGISTRY/IMAGE && kubectl expose deployment web --port=80
       packaging/quickstart.sh --uninstall    removes every trace
END
