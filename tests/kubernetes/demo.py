"""`make demo-kubernetes`: a real cluster of three nodes, one `kubectl apply`, and the commands one would type next.

    python -P -m kubernetes.demo

Each command is shown as typed, with its output as printed. Two minutes when programs and image are there. Takes
everything down, however it ends. Called by the Makefile only.
"""

import re
import signal
import sys
import time

from kubernetes import pods, product
from kubernetes.cluster import Cluster, ClusterError


def say(line: str) -> None:
    print(f"== {line}", flush=True)


def show(cluster: Cluster, *words: str) -> str:
    print(f"\n$ kubectl {' '.join(words)}", flush=True)
    said = cluster.kubectl(*words).stdout
    print(said.rstrip(), flush=True)
    return said


def demo(cluster: Cluster) -> bool:
    say("control plane and three nodes: real kubelets, containerd 1.6 and 2.3, kube-proxy in nftables mode")
    cluster.boot()
    show(cluster, "get", "nodes")
    print("\n$ kubectl apply -f deploy/weave-router.yaml", flush=True)
    took = product.install(cluster)
    say(f"rolled out and all nodes Ready after {took:.1f} s")
    show(cluster, "get", "pods", "-n", "kube-system", "-l", "name=weave-router", "-o", "wide")

    names = {f"busybox-{number}": node.name for number, node in enumerate(cluster.nodes, 1)}
    cluster.apply(*(pods.pod(name, node) for name, node in names.items()), pods.pod("busybox"))
    product.wait_running(cluster, [*names, "busybox"])
    show(cluster, "get", "pods", "-o", "wide")
    route = show(cluster, "exec", "busybox", "--", "ip", "route")
    held = bool(re.search(r"^default via \S+ dev eth0", route, re.MULTILINE))

    addresses = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in cluster.get("pods")}
    answers = 0
    for near in names:
        for far in names:
            ping = ("exec", near, "--", "ping", "-c", "3", "-i", "0.2", "-W", "2", addresses[far])
            said = cluster.kubectl(*ping, check=False).stdout
            answers += " 0% packet loss" in said
            if (near, far) == ("busybox-1", "busybox-3"):
                print(f"\n$ kubectl {' '.join(ping)}\n{said.rstrip()}", flush=True)
    print()
    say(f"pings between pods of all nodes: {answers} of {len(names) ** 2} pairs without loss")
    show(cluster, "-n", "kube-system", "exec", "ds/weave-router", "--", "weave-router", "status")
    return held and answers == len(names) ** 2


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    with Cluster(say=say) as cluster:
        try:
            held = demo(cluster)
        except ClusterError as error:
            print(f"demo-kubernetes: {error}", file=sys.stderr)
            held = False
    print()
    say(f"{'all held' if held else 'NOT all held'}, {time.monotonic() - began:.0f} s, nothing left behind")
    return 0 if held else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
