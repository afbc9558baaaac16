#!/usr/bin/env bash
# From a clone to served pods on this machine: builds amphipod, installs it, starts an all-in-one box, runs a demo.
#
#   packaging/quickstart.sh                  everything
#   packaging/quickstart.sh --binary PATH    use a binary that is already built
#   packaging/quickstart.sh --no-demo        stop when the node is Ready
#   packaging/quickstart.sh -- OPTIONS       also give these options to `amphipod server` (kept in /etc/default/amphipod)
#   packaging/quickstart.sh --uninstall      remove every trace of amphipod (Debian's packages stay)
#
# Running it twice is harmless. Needs root on Debian 12 or newer; building needs Debian's packages and crates.io in reach.
# Installs /usr/local/bin/amphipod; makes /etc/amphipod, /etc/default/amphipod, /var/lib/amphipod, /var/log/amphipod.log, /run/amphipod.
set -euo pipefail

project=$(cd "$(dirname "$0")/.." && pwd)
. "$project/packaging/lib.sh"

bin=/usr/local/bin/amphipod
defaults=/etc/default/amphipod
data=/var/lib/amphipod
log=/var/log/amphipod.log
unit=/etc/systemd/system/amphipod.service
# Without systemd: a loop of this name restarts the program when it ends unasked, as the unit would.
supervisor=amphipod-supervisor
supervisor_pid=/run/amphipod-supervisor.pid
export KUBECONFIG=/etc/amphipod/kubeconfig KUBECACHEDIR=/run/amphipod/kubectl-cache

with_systemd() { [ -d /run/systemd/system ]; }

# Whether the process in the pid file is our supervisor, and not another that got its number after a reboot.
supervised() { [ -f "$supervisor_pid" ] && grep -qsz "^$supervisor\$" "/proc/$(cat "$supervisor_pid")/cmdline"; }

running() {
    if with_systemd; then systemctl is-active --quiet amphipod.service; else supervised; fi
}

stop() {
    local pid
    if with_systemd && [ -f "$unit" ]; then
        systemctl disable --now --quiet amphipod.service || true
    fi
    if supervised; then
        pid=$(cat "$supervisor_pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 300); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
        [ ! -d "/proc/$pid" ] || die "amphipod (process $pid) does not stop" "look at $log; kill -9 it, then run this again"
    fi
    rm -f "$supervisor_pid"
}

start() {
    if with_systemd; then
        install -m 644 "$project/packaging/amphipod.service" "$unit"
        systemctl daemon-reload
        systemctl enable --quiet amphipod.service
        systemctl restart amphipod.service
        return
    fi
    # `wait` returns early when a signal comes; the loop ends only after the program did.
    # shellcheck disable=SC2016 # expanded by the inner shell
    BIN=$bin LOG=$log OPTIONS=$options setsid bash -c '
        trap "stopping=yes; kill \$child 2>/dev/null" TERM INT
        while [ -z "${stopping:-}" ]; do
            "$BIN" server $OPTIONS >>"$LOG" 2>&1 &
            child=$!
            while kill -0 $child 2>/dev/null; do wait $child || true; done
            [ -z "${stopping:-}" ] || break
            echo "amphipod ended; starting it again in a second" >>"$LOG"
            sleep 1
        done' "$supervisor" </dev/null >/dev/null 2>&1 &
    echo $! >"$supervisor_pid"
}

# Removes a directory; one that is a mount point is emptied.
remove() {
    if mountpoint -q "$1" 2>/dev/null; then find "$1" -mindepth 1 -delete; else rm -rf "$1"; fi
}

uninstall() {
    local program=$bin word previous='' where=()
    [ -x "$program" ] || program=${binary:-}
    step "stopping amphipod"
    stop
    if [ -x "$program" ]; then
        step "removing pods, networks, mounts and control groups"
        # Of the server's options those that say where things are.
        for word in $options; do
            case $word in --cgroup-root=* | --data-dir=*) where+=("$word") ;; esac
            case $previous in --cgroup-root | --data-dir) where+=("$previous" "$word") ;; esac
            previous=$word
        done
        "$program" reset --yes ${where[@]+"${where[@]}"} >/dev/null ||
            die "amphipod could not remove everything" "read the message above; what it names can be removed by hand, then run this again"
    elif [ -d "$data/agent" ]; then
        die "$bin is gone, and only amphipod itself can remove the pods that it made" "run this again with --uninstall --binary PATH"
    fi
    step "removing files"
    rm -f "$unit" "$defaults" "$log" "$bin"
    remove /etc/amphipod
    remove "$data"
    remove /run/amphipod
    ! with_systemd || systemctl daemon-reload
    step "amphipod is gone; this clone and Debian's packages are still there"
}

# show_log: the end of the program's log, for a failure's message.
show_log() {
    echo "--- the end of amphipod's log:" >&2
    if with_systemd; then journalctl -u amphipod -n 15 --no-pager >&2; else tail -n 15 "$log" >&2; fi
}

binary='' demo=yes mode=install given=no options=''
while [ $# -gt 0 ]; do
    case $1 in
    --binary) binary=${2:-}; [ -n "$binary" ] || die "--binary needs a path" "see packaging/quickstart.sh --help"; shift ;;
    --no-demo) demo=no ;;
    --uninstall) mode=uninstall ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --) shift; given=yes options=$*; break ;;
    *) die "unknown option $1" "see packaging/quickstart.sh --help" ;;
    esac
    shift
done
[ "$(id -u)" = 0 ] || die "this needs root: it makes namespaces, mounts and network devices" "run it again with sudo"
if [ $given = no ] && [ -f "$defaults" ]; then
    options=$(. "$defaults" && echo "${AMPHIPOD_OPTIONS:-}")
fi
if [ "$mode" = uninstall ]; then uninstall; exit 0; fi
[ "$(uname -s)" = Linux ] && newer_or_same "$(uname -r)" 5.10 || die "amphipod needs Linux 5.10 or newer, this is $(uname -sr)" "use a newer kernel"

if [ -z "$binary" ]; then
    target=${CARGO_TARGET_DIR:-$project/target}
    mkdir -p "$target"
    if [ ! -d "$target/release" ] && [ "$(df --output=avail -m "$target" | tail -n 1)" -lt 2500 ]; then
        die "there are less than 2.5 GB free on the disk of $target" "make room, or set CARGO_TARGET_DIR to a directory on another disk"
    fi
    step "looking for what the build needs"
    install_build_packages
    . "$project/packaging/rust.sh"
    step "building the release binary with $(cargo --version) (5 to 15 minutes the first time on two cores)"
    (cd "$project" && cargo build --release --locked --bin amphipod) ||
        die "the build failed" "read the compiler's message above; if crates could not be fetched, check that crates.io is in reach"
    binary=$target/$(rustc -vV | sed -n 's/^host: //p')/release/amphipod
fi
[ -f "$binary" ] && [ -x "$binary" ] || die "$binary is not an executable file" "give --binary the path of a built amphipod"
version=$("$binary" --version) || die "$binary does not run here" "was it built for this machine ($(uname -m))?"

install_kubectl

if ! running; then
    for port in 6443 10250; do
        ! (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null ||
            die "another program already listens on port $port (another Kubernetes?)" "stop it, then run this again (ss -ltnp shows it)"
    done
fi

mkdir -p "$data" "${defaults%/*}" "${bin%/*}"
restart=no
if [ $given = yes ]; then
    text="# More options of \`amphipod server\`; see \`amphipod server --help\`.
AMPHIPOD_OPTIONS=\"$options\""
    [ "$(cat "$defaults" 2>/dev/null || true)" = "$text" ] || { echo "$text" >"$defaults"; restart=yes; }
fi
if ! cmp -s "$binary" "$bin"; then
    step "installing $version as $bin"
    # Beside it and renamed: a running program keeps its old file.
    install -m 755 "$binary" "$bin.new"
    mv "$bin.new" "$bin"
    restart=yes
fi

if running && [ $restart = no ]; then
    step "the all-in-one box already runs"
else
    step "starting the all-in-one box"
    stop
    start
fi
ready='' deadline=$((SECONDS + 60))
while [ $SECONDS -lt $deadline ]; do
    ready=$(kubectl get nodes -o 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}' 2>/dev/null || true)
    [ "$ready" != True ] || break
    sleep 0.1
done
if [ "$ready" != True ]; then
    show_log
    die "the node did not become Ready within a minute" "the last lines above say why; kubectl --kubeconfig $KUBECONFIG describe nodes says more"
fi
step "the node is Ready; the kubeconfig is $KUBECONFIG"

if [ $demo = yes ]; then
    step "applying the demo: a Deployment with 2 replicas and a Service"
    kubectl apply -f "$project/packaging/demo.yaml" || die "the demo was refused" "read the message above"
    if ! kubectl rollout status deployment/hello --timeout=60s; then
        kubectl get pods -l app=hello >&2 || true
        show_log
        die "the demo did not start" "KUBECONFIG=$KUBECONFIG kubectl describe pods -l app=hello"
    fi
    url=http://hello.default.svc.cluster.local/
    step "fetching $url from inside a pod"
    page=''
    for _ in $(seq 50); do
        page=$(kubectl exec deploy/hello -- /amphipod hello --get $url 2>/dev/null) && break
        sleep 0.1
    done
    if [ -z "$page" ]; then
        kubectl exec deploy/hello -- /amphipod hello --get $url >&2 || true
        show_log
        die "the demo's page did not come" "KUBECONFIG=$KUBECONFIG kubectl get endpointslices,pods -o wide"
    fi
    printf '\n    %s\n\n' "$page"
fi

kubectl get nodes,pods,svc -A
cat <<TEXT

Next:
  export KUBECONFIG=$KUBECONFIG; kubectl scale deployment hello --replicas=5; kubectl get pods -w
  kubectl create deployment web --image=REGISTRY/IMAGE; kubectl expose deployment web --port=80     your own image
  packaging/quickstart.sh --uninstall     removes every trace; logs are in $(with_systemd && echo "journalctl -u amphipod" || echo "$log")
TEXT
with_systemd || echo "(There is no systemd here: after a reboot, run this again.)"
