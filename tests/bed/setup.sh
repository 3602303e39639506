#!/usr/bin/env bash
# Makes a Debian 12 or 13 machine able to run real guests: packages, libvirt, the test guest.
#
# What is there is left as it is; what the network gives is kept, so that a second run needs none. Where systemd
# does not run, virtlogd and libvirtd are started by hand, and only then can --stop end them again.
#
# usage: setup.sh                 packages, libvirt, guest
#        setup.sh --with-python   also a Python environment with a stock gRPC client, buf, and the openstack client
#        setup.sh --stop          ends the libvirt that this script started, unless a VM runs
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
cache=$top/.testbed
started=/run/vmsnap-testbed.started
PATH=$PATH:/usr/sbin:/sbin

# QEMU and libvirt must come from one suite: half of each makes apt remove the other half.
hypervisor=(qemu-system-x86 qemu-utils libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients libvirt-dev)
tools=(make gcc libc6-dev pkg-config cpio gzip xz-utils zstd kmod e2fsprogs ovmf)
# jq takes the examples of docs/API.md from one answer to the next request.
python=(python3-venv jq)
python_packages=(grpcio grpcio-reflection grpcio-status grpcio-tools buf-bin python-openstackclient)

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

check_machine() {
    # shellcheck source=/dev/null
    . /etc/os-release
    codename=${VERSION_CODENAME:-}
    case ${ID:-}:$codename in
    debian:bookworm | debian:trixie) ;;
    *) fail "this needs Debian 12 (bookworm) or 13 (trixie), not ${PRETTY_NAME:-this system}" ;;
    esac
    [ "$(dpkg --print-architecture)" = amd64 ] || fail "the test guest is built for amd64 only"
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null || fail "run this as root, or install sudo"
    command -v cargo >/dev/null || [ -x "$HOME/.cargo/bin/cargo" ] ||
        fail "there is no cargo: install Rust with rustup or from your distribution, then run this again"
}

# The given packages that are not installed.
missing() {
    local package
    for package in "$@"; do
        dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
            echo "$package"
    done
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends "$@" >/dev/null
}

lists_updated=
update_lists() {
    [ -n "$lists_updated" ] && return
    as_root apt-get update --quiet=2
    lists_updated=1
    say "updated the package lists"
}

# Prints the configured source of $codename with its suite replaced by backports, in the format of the given file.
backports_entry() {
    case $1 in
    *.sources)
        awk -v suite="$codename" '
            BEGIN { RS = ""; FS = "\n" }
            found || tolower($0) ~ /(^|\n)enabled: *no/ { next }
            $0 ~ "(^|\n)Suites:([^\n]* )?" suite "( [^\n]*)?(\n|$)" && $0 ~ /(^|\n)Types:[^\n]*deb( |\n|$)/ {
                for (i = 1; i <= NF; i++) {
                    sub(/^Suites:.*/, "Suites: " suite "-backports", $i)
                    sub(/^Types:.*/, "Types: deb", $i)
                    if ($i !~ /^#/) print $i
                }
                found = 1
            }' "$1"
        ;;
    *.list)
        sed -n -E "s/^(deb +(\[[^]]*\] +)?[^ ]+ +)$codename( +.*)\$/\1$codename-backports\3/p" "$1" | head -n 1
        ;;
    esac
}

add_backports() {
    local file entry
    if grep -rqsE "^(Suites:|deb ).*\b$codename-backports\b" /etc/apt/sources.list /etc/apt/sources.list.d \
        --include='*.list' --include='*.sources'; then
        return
    fi
    for file in /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -f "$file" ] || continue
        entry=$(backports_entry "$file")
        [ -n "$entry" ] || continue
        file=/etc/apt/sources.list.d/vmsnap-backports.${file##*.}
        as_root tee "$file" <<<"$entry" >/dev/null
        lists_updated=
        say "added $codename-backports in $file"
        return
    done
    fail "no source of $codename is configured for apt, so none of $codename-backports can be made from it"
}

# bookworm's own libvirt and QEMU are old, so there they come from backports; but a machine that already has
# libvirt keeps the suite it has.
hypervisor_suite() {
    local version
    version=$(dpkg-query --show --showformat '${Version}' libvirt-daemon-system 2>/dev/null || true)
    case $codename:$version in
    bookworm: | bookworm:*~bpo*) echo bookworm-backports ;;
    *) echo "$codename" ;;
    esac
}

install_packages() {
    local suite lacking
    lacking=$(missing "${hypervisor[@]}")
    if [ -n "$lacking" ]; then
        suite=$(hypervisor_suite)
        [ "$suite" = "$codename" ] || add_backports
        update_lists
        apt_install --target-release "$suite" "${hypervisor[@]}"
        say "installed QEMU and libvirt from $suite"
    fi
    lacking=$(missing "$@")
    if [ -n "$lacking" ]; then
        update_lists
        # shellcheck disable=SC2086 # a list of names
        apt_install $lacking
        say "installed $(tr '\n' ' ' <<<"$lacking")"
    fi
}

libvirt_answers() { as_root virsh --quiet --connect qemu:///system uri >/dev/null 2>&1; }

# The process id of a daemon of libvirt, if it runs.
process_of() {
    local process
    process=$(cat "/run/$1.pid" 2>/dev/null) && [ "$(cat "/proc/$process/comm" 2>/dev/null)" = "$1" ] && echo "$process"
}

# What udev does for /dev/kvm. Where it did not, QEMU finds a KVM that libvirt thinks it may not use, and libvirt then
# asks QEMU anew what it can do, for seconds, on each call (virQEMUCapsIsValid in libvirt's qemu_capabilities.c).
give_kvm_its_group() {
    [ -e /dev/kvm ] && [ "$(stat --format %G /dev/kvm)" != kvm ] || return 0
    as_root chgrp kvm /dev/kvm
    say "gave /dev/kvm to the group kvm, as udev does"
}

start_by_hand() {
    process_of "$1" >/dev/null && return
    as_root "$1" -d
    process_of "$1" | as_root tee -a "$started" >/dev/null
    say "started $1"
}

start_libvirt() {
    give_kvm_its_group
    libvirt_answers && return
    if [ -d /run/systemd/system ]; then
        as_root systemctl start virtlogd libvirtd
        say "started virtlogd and libvirtd with systemctl"
    else
        start_by_hand virtlogd
        start_by_hand libvirtd
    fi
    local tries
    for tries in $(seq 100); do
        libvirt_answers && return
        sleep 0.1
    done
    fail "libvirtd does not answer on qemu:///system after $tries tries"
}

vms() { as_root virsh --quiet --connect qemu:///system list --name 2>/dev/null; }

stop_libvirt() {
    [ -s "$started" ] || return 0
    # A run that was interrupted may still be removing its guests.
    local tries=0
    while [ $tries -lt 50 ] && vms | grep -q '^vmsnap-bed-'; do
        sleep 0.2
        tries=$((tries + 1))
    done
    if [ -n "$(vms)" ]; then
        say "left libvirtd running: a VM uses it"
        return
    fi
    local process
    while read -r process; do
        case $(cat "/proc/$process/comm" 2>/dev/null) in
        libvirtd | virtlogd) as_root kill "$process" ;;
        esac
    done < <(tac "$started")
    as_root rm -f "$started"
    say "stopped the libvirtd and virtlogd that were started here"
}

# What a run left that was killed with its machine: VMs whose name tells a process that is gone. Their images may be
# gone too, and then nobody can tell what they use; the daemon refuses to delete volumes beside them.
remove_leftovers() {
    local vm process
    while read -r vm; do
        process=$(sed -nE 's/^vmsnap-(bed|contract|host)-([0-9]+)-.*/\2/p' <<<"$vm")
        [ -n "$process" ] && [ ! -e "/proc/$process" ] || continue
        as_root virsh --quiet --connect qemu:///system destroy "$vm" >/dev/null 2>&1 || true
        as_root virsh --quiet --connect qemu:///system undefine --nvram --managed-save "$vm" >/dev/null
        say "removed $vm, left by a run that was killed"
    done < <(as_root virsh --quiet --connect qemu:///system list --all --name)
    as_root find /var/lib/libvirt/images -maxdepth 1 -name 'vmsnap-bed-*' -type d | while read -r vm; do
        process=$(sed -nE 's/.*-([0-9]+)-[0-9]+$/\1/p' <<<"$vm")
        [ -n "$process" ] && [ ! -e "/proc/$process" ] || continue
        as_root rm -rf "$vm"
        say "removed $vm, left by a run that was killed"
    done
}

build_guest() {
    local before
    before=$(stat --format %Y "$cache/guest/initrd.gz" 2>/dev/null || true)
    "$top/tests/guest/build.sh" "$cache/guest"
    [ "$before" = "$(stat --format %Y "$cache/guest/initrd.gz")" ] || say "built the guest in .testbed/guest"
}

make_python() {
    local wanted="${python_packages[*]}"
    [ "$(cat "$cache/python/wanted" 2>/dev/null)" = "$wanted" ] && return
    rm -rf "$cache/python"
    /usr/bin/python3 -m venv "$cache/python"
    "$cache/python/bin/pip" install --quiet --disable-pip-version-check "${python_packages[@]}"
    echo "$wanted" >"$cache/python/wanted"
    say "made a Python environment in .testbed/python with $wanted"
}

case ${1:-} in
'' | --with-python) ;;
--stop)
    stop_libvirt
    exit
    ;;
*) fail "usage: setup.sh [--with-python | --stop]" ;;
esac
check_machine
mkdir -p "$cache"
if [ "${1:-}" = --with-python ]; then
    install_packages "${tools[@]}" "${python[@]}"
    make_python
else
    install_packages "${tools[@]}"
fi
start_libvirt
remove_leftovers
build_guest
say "ready"
