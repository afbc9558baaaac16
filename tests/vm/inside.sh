#!/usr/bin/env bash
# Runs inside the virtual machine, as a unit: the stages of one check, with a reboot between two stages. See tests/vm/run.sh.
set -uo pipefail
state=/vm
mkdir -p $state
# What is said here goes to the machine outside.
modprobe virtio_console
udevadm wait --timeout=60 /dev/virtio-ports/result
exec >/dev/virtio-ports/result
export HOME=/root KUBECONFIG=/etc/amphipod/kubeconfig KUBECACHEDIR=/run/kubectl-cache
name=$(sed 's/.*check=\([a-z]*\).*/\1/' /proc/cmdline)
filter=$(sed 's/.*tests=\([^ ]*\).*/\1/' /proc/cmdline)

# check PROMISE FUNCTION [ARGUMENT...]: runs the function in a shell of its own; what it says is shown when it fails.
check() {
    local promise=$1 start=$SECONDS
    shift
    # Not as a condition: that would switch `set -e` off inside.
    (set -euo pipefail; "$@") >$state/said 2>&1
    if [ $? = 0 ]; then
        echo "ok      $promise ($((SECONDS - start)) s)"
    else
        echo "FAILED  $promise ($((SECONDS - start)) s)"
        # And what the program says of itself.
        [ ! -f $KUBECONFIG ] || { echo; systemctl show -p ActiveState,SubState,NRestarts amphipod.service; journalctl -b -u amphipod -n 15 --no-pager; kubectl get nodes,pods -A -o wide
            kubectl describe nodes | sed -n '/^Conditions/,/^Addresses/p'; } >>$state/said 2>&1
        sed 's/^/        | /' $state/said | tail -n "${LINES_SHOWN:-60}"
        echo "$promise" >>$state/failed
    fi
}

# eventually SECONDS COMMAND...: until it succeeds.
eventually() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || { echo "never came true: $*"; return 1; }
        sleep 0.5
    done
}

# same WHAT A B: fails and shows the difference where they differ.
same() { [ "$2" = "$3" ] || { echo "$1:"; diff <(echo "$2") <(echo "$3"); return 1; }; }

# traces: everything on the machine that amphipod could leave a trace in, one line each. Not: what systemd itself does as time goes by.
traces() (
    set +eu +o pipefail
    {
        find / -xdev \( -path /vm -o -path /tmp -o -path /root -o -path /project \) -prune -o -print | sed 's/^/file /'
        find /run -not -path '/run/systemd/*' -not -path '/run/udev/*' -not -path '/run/log/*' -not -path '/run/kubectl-cache*' | sed 's/^/file /'
        find /sys/fs/cgroup -type d -not -path '*/system.slice/*' -not -path '*/user.slice/*' -not -path '*/init.scope*' -not -name '*.mount' | sed 's/^/cgroup /'
        cut -d' ' -f5 /proc/self/mountinfo | sed 's/^/mount /'
        ip -o link | cut -d: -f2 | sed 's/^/link /'
        ip -o addr | cut -d' ' -f2-7 | sed 's/^/address /'
        ip route show table all | sed 's/ expires [^ ]*//; s/^/route /'
        ip rule | sed 's/^/rule /'
        ip neigh show nud permanent | sed 's/^/neighbour /'
        nft list ruleset | sed 's/^/nft /'
        ip netns | sed 's/^/netns /'
        lsns -n -t net -o TYPE,COMMAND | sed 's/^/namespace /'
        for p in /proc/[0-9]*; do tr '\0' ' ' <"$p/cmdline" | cut -c-100 | grep . | grep -vF '(udev-worker)' | sed 's/^/process /'; done
        sed 's/^/user /' /etc/passwd /etc/group
        # What every new interface gets is no trace of ours.
        find /proc/sys/net /proc/sys/kernel /proc/sys/vm /proc/sys/fs -type f -perm -u+w -not -path '*/conf/*' -not -path '*/neigh/*' \
            -not -name 'random*' -not -name ns_last_pid -not -name user_reserve_kbytes -exec grep -sH . {} + | sed 's/^/setting /'
        grep -sH . /proc/sys/net/ipv[46]/conf/{all,default,lo,en*}/* | sed 's/^/setting /'
        systemctl list-unit-files --no-legend --no-pager | sed 's/ .*//; s/^/unit /'
        systemctl list-units --all --plain --no-legend --no-pager 'amphipod*' | sed 's/^/loaded /'
    } 2>/dev/null | grep -v -E '^process (find|sed|cut|tr|grep|bash|/bin/bash|sort|sleep|lsns)|^file /var/(lib/systemd|log/journal|tmp/systemd)|/etc/resolv.conf' | sort -u
)

# Modules stay, and their settings with them: as they are before anything of ours runs.
modprobe -a nf_conntrack nf_flow_table || true
. "/project/tests/vm/checks/$name.sh"
stage=$(cat $state/stage 2>/dev/null || echo 0)
[ "$stage" != 0 ] || echo "Linux $(uname -r), $(. /etc/os-release && echo "$PRETTY_NAME"), $(systemctl --version | head -n 1), $(stat -fc %T /sys/fs/cgroup)"
"${stages[$stage]}"
stage=$((stage + 1))
echo $stage >$state/stage
sync
if [ $stage -lt ${#stages[@]} ]; then
    case ${ends[$stage - 1]:-reboot} in
    power-cut) echo "--- power cut"; echo b >/proc/sysrq-trigger ;;
    *) echo "--- reboot"; systemctl reboot ;;
    esac
else
    if [ -s $state/failed ]; then echo "$(wc -l <$state/failed) failed"; else echo "everything holds"; fi
    systemctl poweroff
fi
