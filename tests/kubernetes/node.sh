#!/usr/bin/env bash
# node.sh FOLDER NAME CGROUP: the first process of a node, inside its own net, mount, pid and uts namespace. Ending it is a
# power failure of the node. It makes the node's own view of the machine, then reaps what is orphaned here, for ever.
# FOLDER is the cluster's state, of which only FOLDER/NAME stays visible. Called by tests/kubernetes/node.py.
set -euo pipefail
folder=$1 name=$2 cgroup=$3 own=$1/$2

hostname "$name"
mkdir -p "$own"
mount --bind "$own" "$own"          # stays when the rest of FOLDER is hidden below

# A fresh sysfs shows this network namespace's devices; the cgroup mounts under the old one are kept.
mkdir -p "$own/cgroup"
mount --rbind /sys/fs/cgroup "$own/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$own/cgroup" /sys/fs/cgroup
for controller in /sys/fs/cgroup/*/; do
  [ ! -w "$controller" ] || mkdir -p "$controller/$cgroup" 2>/dev/null || true
done
for file in cpuset.cpus cpuset.mems; do
  cat "/sys/fs/cgroup/cpuset/$file" > "/sys/fs/cgroup/cpuset/$cgroup/$file"
done

private() {
  mkdir -p "$own/private$1" "$1"
  mount --bind "$own/private$1" "$1"
}
for path in /var/lib/kubelet /var/lib/containerd /run/containerd /etc/cni/net.d /opt/cni/bin /var/lib/cni \
            /var/log/pods /var/log/containers /etc/weave-router /var/lib/weave-router /run/weave-router; do
  private "$path"
done
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
touch "$own/xtables.lock" /run/xtables.lock
mount --bind "$own/xtables.lock" /run/xtables.lock
cp /usr/lib/cni/* /opt/cni/bin/

# The control plane's keys and the admin's kubeconfig are no part of a node.
mkdir -p "$folder/control"
mount -t tmpfs -o ro tmpfs "$folder/control"
mount --make-rshared /

echo ready > "$own/ready"
while :; do wait -n 2>/dev/null || sleep 1; done
