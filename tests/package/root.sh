#!/usr/bin/env bash
# Makes a clean Debian root of this machine's suite, with further packages, from the sources of packages that this machine has.
# What it mounts is seen by nobody else, and gone with it.
#
# usage: unshare --mount root.sh DIRECTORY [PACKAGE...]     makes nothing if DIRECTORY is there
set -euo pipefail
directory=$1
shift
[ ! -e "$directory" ] || exit 0
# Complete once it has its name.
root=$directory.new

# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")

# The first source of this suite, in either format of apt.
mirror() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null | awk -v suite="$codename" '
        tolower($1) == "uris:" { uri = $2 }
        tolower($1) == "suites:" && index(" " $0 " ", " " suite " ") { print uri; exit }
        $1 == "deb" { for (i = 2; i < NF; i++) if ($(i + 1) == suite) { print $i; exit } }'
}

# As this machine fetches packages, so does the root.
give_sources() {
    rm -f "$root/etc/apt/sources.list"
    [ ! -e /etc/apt/sources.list ] || cp /etc/apt/sources.list "$root/etc/apt/"
    cp /etc/apt/sources.list.d/*.{list,sources} "$root/etc/apt/sources.list.d/" 2>/dev/null || true
    cp --no-clobber --recursive /etc/apt/trusted.gpg.d/. "$root/etc/apt/trusted.gpg.d/"
    cp --no-clobber --recursive /usr/share/keyrings/. "$root/usr/share/keyrings/"
    [ ! -d /etc/apt/keyrings ] || cp --recursive /etc/apt/keyrings "$root/etc/apt/"
    apt-config dump | grep '^Acquire::' >"$root/etc/apt/apt.conf.d/90machine"
    cat >"$root/etc/apt/apt.conf.d/91unattended" <<CONFIGURATION
APT::Get::Assume-Yes "true";
APT::Install-Recommends "false";
DPkg::Use-Pty "false";
quiet "1";
CONFIGURATION
    cp /etc/resolv.conf "$root/etc/resolv.conf"
}

in_root() { DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$root" "$@"; }

mkdir -p "${directory%/*}"
rm -rf --one-file-system "$root"
debootstrap --variant=minbase "$codename" "$root" "$(mirror)" >"$directory.log"
give_sources
in_root apt-get update --quiet=2
if [ $# -gt 0 ]; then
    for place in /proc /sys /dev; do
        mount --rbind "$place" "$root$place"
    done
    # Nothing is to be started in here.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    # bookworm's own libvirt is old; see tests/bed/setup.sh.
    suite=$codename
    [ "$codename" != bookworm ] || suite=bookworm-backports
    in_root apt-get install --quiet=2 --target-release "$suite" "$@" >>"$directory.log"
    rm "$root/usr/sbin/policy-rc.d"
    umount --recursive "$root/proc" "$root/sys" "$root/dev"
fi
in_root apt-get clean
mv "$root" "$directory"
