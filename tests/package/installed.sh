#!/usr/bin/env bash
# The package in a clean Debian root beside the libvirt that runs here: what it installs, the demo with that, an upgrade while a
# VM runs, a removal. The root's programs see libvirt and the images where libvirt and QEMU see them. What is mounted for
# that is seen by nobody else, and gone with this process; so is the daemon.
#
# usage: unshare --mount installed.sh WORK BUILT     WORK has the packages 1/*.deb and 2/*.deb
set -euo pipefail
work=$1 built=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
root=$work/root
vm=vmsnap-bed-$$-0
images=/var/lib/libvirt/images/$vm
daemon=

say() { echo "installed: $*"; }
fail() {
    echo "installed: $*" >&2
    exit 1
}
in_root() { DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/srv/test chroot "$root" sh -c "cd && $*"; }
virsh_here() { virsh --quiet --connect qemu:///system "$@"; }

finish() {
    [ -z "$daemon" ] || kill -KILL "$daemon" 2>/dev/null || true
    virsh_here destroy "$vm" >/dev/null 2>&1 || true
    virsh_here undefine "$vm" >/dev/null 2>&1 || true
    rm -rf "$images"
}

make_root() {
    cp -a "$top/.testbed/package/clean" "$root"
    mkdir "$root/srv/test"
    local place
    for place in /proc /sys /dev; do
        mount --rbind "$place" "$root$place"
    done
}

# apt gets what an operator has: the package in target/debian.
offer() {
    rm -rf "$root/srv/test/target"
    mkdir -p "$root/srv/test/target/debian"
    cp "$work/$1"/*.deb "$root/srv/test/target/debian/"
}

share_libvirt() {
    local place
    for place in /run/libvirt /var/lib/libvirt; do
        mkdir -p "$root$place"
        mount --bind "$place" "$root$place"
    done
}

# The same files as `make install` brings, and the documentation that Debian wants. Manuals are compressed.
check_files() {
    make --silent --directory "$top" --assume-old=build PROFILE="${VMSNAP_PROFILE:-release}" DESTDIR="$work/made" install
    (cd "$work/made" && find . -type f | sed -E 's|^\.||; s|^(/usr/share/man/.*)|\1.gz|' | sort) >"$work/wanted"
    in_root dpkg --listfiles vmsnap | grep -v '^/usr/share/doc/' | while read -r file; do
        [ -d "$root$file" ] || echo "$file"
    done | sort >"$work/found"
    diff "$work/wanted" "$work/found" || fail "the package and 'make install' do not bring the same files"
    local file
    for file in copyright changelog.gz changelog.Debian.gz OPERATIONS.md; do
        [ -s "$root/usr/share/doc/vmsnap/$file" ] || fail "there is no $file"
    done
    say "$(wc -l <"$work/found") files, as 'make install' has them"
}

check_state() {
    [ -n "$(in_root getent group vmsnap)" ] || fail "there is no group vmsnap"
    [ "$(in_root stat --format %a:%U:%G /etc/vmsnapd)" = 750:root:vmsnap ] || fail "/etc/vmsnapd is not as it should be"
    [ "$(in_root stat --format %a:%U:%G /var/lib/vmsnapd)" = 700:root:vmsnap ] || fail "/var/lib/vmsnapd is not as it should be"
    [ -L "$root/etc/systemd/system/multi-user.target.wants/vmsnapd.service" ] || fail "the service is not enabled"
    [ ! -e "$root/etc/systemd/system/sockets.target.wants/vmsnapd.socket" ] || fail "nobody wanted the socket"
    in_root vmsnapd check-config
    say "group, directories and service are there"
}

# Programs of this name for whoever runs them outside of the root.
lend_programs() {
    local name
    mkdir "$work/programs"
    for name in vmsnapd vmsnap; do
        printf '#!/bin/sh\nexec chroot %s /usr/bin/%s "$@"\n' "$root" "$name" >"$work/programs/$name"
        chmod 755 "$work/programs/$name"
    done
}

start_daemon() {
    # As the unit does it.
    mkdir -p "$root/run/vmsnapd"
    setpriv --pdeathsig KILL chroot "$root" /usr/bin/vmsnapd 2>>"$work/vmsnapd.log" &
    daemon=$!
    local tries
    for tries in $(seq 600); do
        ! in_root vmsnapd health --part libvirt 2>/dev/null || return 0
        [ -e "/proc/$daemon" ] || break
        # There is no event for it but systemd's, and nobody is systemd here.
        sleep 0.1
    done
    tail -n 20 "$work/vmsnapd.log" >&2
    fail "vmsnapd does not serve after $tries tries"
}

stop_daemon() {
    kill "$daemon"
    wait "$daemon" || fail "vmsnapd ended with $?"
    daemon=
}

start_vm() {
    mkdir --mode 711 "$images"
    qemu-img create -q -f qcow2 "$images/vda.qcow2" 16M
    sed -e "s|NAME|$vm|; s|IMAGE|$images/vda.qcow2|" "$here/vm.xml" >"$images/vm.xml"
    virsh_here define "$images/vm.xml" >/dev/null
    virsh_here start "$vm" >/dev/null
}

snapshots() { in_root vmsnap snapshot list "$vm" -o json; }
process_of_vm() { cat "/run/libvirt/qemu/$vm.pid"; }

upgrade_beside_a_vm() {
    start_daemon
    start_vm
    local process before
    process=$(process_of_vm)
    in_root vmsnap snapshot create "$vm" before-upgrade
    before=$(snapshots)
    grep -q before-upgrade <<<"$before" || fail "it is not listed: $before"
    stop_daemon
    offer 2
    in_root 'apt install ./target/debian/vmsnap_*_amd64.deb'
    [[ $(in_root dpkg-query --show vmsnap) == *+newer ]] || fail "this is not the new package"
    start_daemon
    [ "$(snapshots)" = "$before" ] || fail "the snapshots are not what they were: $(snapshots)"
    [ "$(process_of_vm)" = "$process" ] || fail "the VM did not run on"
    say "after the upgrade the snapshots are listed as before, and the VM has run on"
    in_root vmsnap snapshot create "$vm" after-upgrade
    snapshots >"$work/snapshots"
    stop_daemon
}

remove_and_come_back() {
    in_root 'apt remove vmsnap'
    [ ! -e "$root/usr/bin/vmsnapd" ] || fail "programs are left after the removal"
    [ -s "$root/var/lib/vmsnapd/catalog.db" ] || fail "the removal took the catalog: $(ls "$root/var/lib/vmsnapd")"
    in_root 'apt purge vmsnap' 2>&1 | tee "$work/purge"
    grep -q '/var/lib/vmsnapd is not empty, and was left as it is' "$work/purge" || fail "the purge says nothing"
    [ ! -e "$root/etc/systemd/system/multi-user.target.wants/vmsnapd.service" ] || fail "the service is still enabled"
    [ ! -e "$root/etc/vmsnapd" ] || fail "an empty /etc/vmsnapd is left"
    in_root 'apt install ./target/debian/vmsnap_*_amd64.deb'
    start_daemon
    snapshots | diff "$work/snapshots" - || fail "the snapshots are not what they were"
    say "after a purge the catalog is there, and the next installation goes on with it"
    in_root vmsnap snapshot delete "$vm/before-upgrade" "$vm/after-upgrade" --yes
    [ "$(virsh_here domstate "$vm")" = running ] || fail "the VM does not run"
    stop_daemon
}

trap finish EXIT
trap 'exit 130' INT TERM
make_root
offer 1
in_root 'apt install ./target/debian/vmsnap_*_amd64.deb'
check_files
check_state
share_libvirt
lend_programs
VMSNAP_PROGRAMS=$work/programs "$built/examples/demo"
upgrade_beside_a_vm
remove_and_come_back
say ok
