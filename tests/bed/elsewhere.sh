#!/usr/bin/env bash
# Another node on this machine: a libvirtd that sees the same images, and nothing of the first one's VMs. In mount and
# process namespaces of its own, so that all of it ends with this process.
#
# usage: unshare --mount --pid --fork --kill-child --mount-proc elsewhere.sh DIRECTORY
set -euo pipefail
directory=$1
PATH=$PATH:/usr/sbin:/sbin
mount --make-rprivate /
for place in /run /var/lib/libvirt/qemu /var/cache/libvirt /var/log/libvirt /etc/libvirt/qemu; do
    mkdir -p "$place"
    mount -t tmpfs tmpfs "$place"
done
mkdir -p /run/libvirt /run/lock
# libvirt moves no VM to the node that it is on, and knows that one by this id.
cat >"$directory/libvirtd.conf" <<CONFIGURATION
unix_sock_dir = "$directory"
auth_unix_rw = "none"
host_uuid = "$(cat /proc/sys/kernel/random/uuid)"
CONFIGURATION
virtlogd --daemon --pid-file /run/virtlogd.pid
exec libvirtd --config "$directory/libvirtd.conf" --pid-file /run/libvirtd.pid
