# The README's first command on a machine with systemd: to its end, again, through restarts, a reboot and a power cut, and away.

stages=(arrive rebooted leave)
ends=(reboot power-cut)

quickstart() { /project/packaging/quickstart.sh "$@"; }
page() { [ -n "$(kubectl exec deploy/hello -- /amphipod hello --get http://hello.default.svc.cluster.local/)" ]; }
# The containers that run: pod, id, restarts.
containers() {
    kubectl get pods -A -o 'jsonpath={range .items[*]}{.metadata.name} {range .status.containerStatuses[*]}{.name} {.containerID} {.restartCount} {.state.running.startedAt} {end}{"\n"}{end}' | sort
}
ready() { [ "$(kubectl get nodes -o 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}' 2>/dev/null)" = True ]; }
all_ready() { kubectl wait --for=condition=Ready pods --all --timeout=10s >/dev/null; }
by_node_port() { curl -sf -m 10 http://10.0.2.15:30080/ >/dev/null; }
by_host_port() { curl -sf -m 10 http://10.0.2.15:8088/ >/dev/null; }

first() {
    traces >/vm/before
    quickstart --binary /project/amphipod | tee /vm/first
    grep -q 'Hello from Amphipod, served by hello-' /vm/first
    grep -q 'node is Ready; the kubeconfig is /etc/amphipod/kubeconfig' /vm/first
    grep -q 'journalctl -u amphipod' /vm/first
    for word in edge pod/hello- service/hello service/kubernetes; do grep -q "$word" /vm/first; done
    systemctl is-active --quiet amphipod
    systemctl is-enabled --quiet amphipod
}

second() {
    local pid before
    pid=$(systemctl show -P MainPID amphipod) before=$(containers)
    quickstart --binary /project/amphipod | tee /vm/second
    grep -q 'already runs' /vm/second
    grep -q 'Hello from Amphipod' /vm/second
    same "the unit's process" "$pid" "$(systemctl show -P MainPID amphipod)"
    same "containers" "$before" "$(containers)"
}

# As in tests/tests/quickstart.rs: volumes in memory and on disk, host ports, node ports, limits, a pod of two containers.
more() {
    kubectl apply -f - <<'TEXT'
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: NodePort, sessionAffinity: ClientIP, selector: {app: much}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: much, labels: {app: much}}
spec:
  volumes:
    - {name: disk, emptyDir: {}}
    - {name: memory, emptyDir: {medium: Memory}}
    - {name: settings, configMap: {name: settings}}
  containers:
    - name: main
      image: amphipod.local/hello
      ports: [{containerPort: 8080, hostPort: 8088}]
      resources: {limits: {memory: 64Mi, cpu: 500m}}
      volumeMounts:
        - {name: disk, mountPath: /disk}
        - {name: memory, mountPath: /memory}
        - {name: settings, mountPath: /settings}
        - {name: settings, mountPath: /one, subPath: colour}
    - name: second
      image: amphipod.local/hello
      args: [--port=8090]
TEXT
    kubectl wait --for=condition=Ready pod/much --timeout=120s
    eventually 30 by_node_port
    eventually 30 by_host_port
    local group
    group=/sys/fs/cgroup$(cut -d: -f3 "/proc/$(pgrep -f 'hello --port=8090')/cgroup")
    # The group of the other container is beside it, with its limits.
    echo "$group"
    grep -rqx 67108864 "$(dirname "$group")"/*/memory.max
    grep -rqx '50000 100000' "$(dirname "$group")"/*/cpu.max
}

restart() {
    local before
    before=$(containers)
    systemctl restart amphipod
    eventually 60 ready
    same "containers" "$before" "$(containers)"
    eventually 30 page
    systemctl kill --signal=KILL --kill-whom=main amphipod
    eventually 30 systemctl is-active --quiet amphipod
    eventually 60 ready
    same "containers" "$before" "$(containers)"
    eventually 30 page
}

stopped() {
    local before
    before=$(containers)
    systemctl stop amphipod
    by_node_port
    by_host_port
    systemctl start amphipod
    eventually 60 ready
    same "containers" "$before" "$(containers)"
    eventually 30 page
}

# The program, its keeper and its children are in the unit's control group, pods are not: systemd must not touch what is not its own.
managers() {
    local before
    before=$(containers)
    systemctl daemon-reload
    systemctl daemon-reexec
    systemctl restart systemd-networkd
    eventually 60 systemctl is-active --quiet network-online.target
    systemctl restart systemd-udevd systemd-journald
    eventually 30 page
    eventually 30 by_node_port
    eventually 30 by_host_port
    same "containers" "$before" "$(containers)"
    # The journal still gets what amphipod says.
    systemctl restart amphipod
    eventually 60 ready
    journalctl -u amphipod -n 50 --no-pager | grep -v systemd
}

arrive() {
    check "the quickstart ends with a page, fetched through a Service by name" first
    check "the second time is harmless" second
    check "pods get their limits, ports and volumes" more
    check "a restart of the unit, and a kill of the program, touch no container" restart
    check "pods serve while the unit is stopped" stopped
    check "a reload of systemd, and restarts of its network manager, udev and journal, do no harm" managers
    containers >/vm/containers
    kubectl get pods -o 'jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.podIP}{"\n"}{end}' | sort >/vm/pods
}

back() {
    eventually 120 ready
    eventually 120 all_ready
    eventually 60 page
    eventually 60 by_node_port
    eventually 60 by_host_port
    same "pods" "$(cat /vm/pods)" "$(kubectl get pods -o 'jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.podIP}{"\n"}{end}' | sort)"
    kubectl get pods -A
}

rebooted() { check "after a reboot the unit and the same pods run again by themselves" back; }

gone() {
    quickstart --uninstall
    traces >/vm/after
    same "traces" "$(cat /vm/before)" "$(cat /vm/after)"
    quickstart --uninstall
}

again() {
    quickstart --no-demo --binary /project/amphipod
    quickstart --uninstall
    traces >/vm/after
    same "traces" "$(cat /vm/before)" "$(cat /vm/after)"
}

leave() {
    # After a cut, not a shutdown.
    check "after a power cut, too" back
    check "uninstalling leaves no trace" gone
    check "what was uninstalled can come again" again
}
