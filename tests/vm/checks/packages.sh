# The .deb on a machine with systemd: installed, enabled, upgraded, removed, purged.

stages=(debian)

ready() { [ "$(kubectl get nodes -o 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}' 2>/dev/null)" = True ]; }
containers() { kubectl get pods -o 'jsonpath={range .items[*]}{.metadata.name} {range .status.containerStatuses[*]}{.containerID} {.restartCount}{end}{"\n"}{end}' | sort; }
page() { [ -n "$(kubectl exec deploy/hello -- /amphipod hello --get http://hello.default.svc.cluster.local/)" ]; }

installed() {
    traces >/vm/before
    dpkg -i /project/amphipod_*.deb
    same "enabled units" disabled "$(systemctl is-enabled amphipod || true)"
    same "enabled units" disabled "$(systemctl is-enabled amphipod-agent || true)"
    same "active" inactive "$(systemctl is-active amphipod || true)"
    systemctl enable --now amphipod
    eventually 60 ready
    kubectl apply -f /project/packaging/demo.yaml
    kubectl rollout status deployment/hello --timeout=120s
    eventually 60 page
    dpkg --verify amphipod
}

upgraded() {
    local before pid
    before=$(containers) pid=$(systemctl show -P MainPID amphipod)
    dpkg -i /project/amphipod_*.deb
    eventually 60 ready
    same "containers" "$before" "$(containers)"
    [ "$pid" != "$(systemctl show -P MainPID amphipod)" ]
    systemctl is-enabled amphipod
    eventually 60 page
}

removed() {
    dpkg -r amphipod
    same "processes" "" "$(pgrep -a amphipod || true)"
    same "mounts" "" "$(grep -E 'amphipod|/var/lib/kubelet' /proc/self/mountinfo || true)"
    same "tables" "" "$(nft list tables | grep amphi || true)"
    same "links" "" "$(ip -o link | grep amphi || true)"
    same "groups" "" "$(find /sys/fs/cgroup -name '*amphipod*' -o -name '*kubepods*')"
    # What a server knew waits for a next installation.
    dpkg -i /project/amphipod_*.deb
    systemctl enable --now amphipod
    eventually 60 ready
    kubectl rollout status deployment/hello --timeout=120s
    eventually 60 page
}

purged() {
    dpkg --purge amphipod
    # But for what dpkg keeps for itself.
    traces | grep -v '^file /var/lib/dpkg/' >/vm/after
    same "traces" "$(grep -v '^file /var/lib/dpkg/' /vm/before)" "$(cat /vm/after)"
}

debian() {
    check "the package installs two units and starts none; one command starts a box" installed
    check "an upgrade restarts the program and no container" upgraded
    check "removing it ends all pods, and a server's state is there when it comes back" removed
    check "purging it leaves no trace" purged
}
