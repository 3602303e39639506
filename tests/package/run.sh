#!/usr/bin/env bash
# The Debian package, looked at and used: see `make package-test`. Needs libvirt and the guest of tests/bed, and builds the
# rest. Clean Debian roots are kept in .testbed/package, so that a second run need not fetch them.
#
# usage: run.sh            VMSNAP_PROFILE and VMSNAP_BUILT: the profile, and the directory of its programs
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
cache=$top/.testbed/package
profile=${VMSNAP_PROFILE:-release}
built=${VMSNAP_BUILT:-$top/target/release}
PATH=$PATH:/usr/sbin:/sbin

say() { echo "package: $*"; }
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo --preserve-env "$@"; fi; }

install_tools() {
    local tool lacking=()
    for tool in debootstrap lintian; do
        command -v "$tool" >/dev/null || lacking+=("$tool")
    done
    [ ${#lacking[@]} -gt 0 ] || return 0
    as_root apt-get update --quiet=2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends "${lacking[@]}" >/dev/null
    say "installed ${lacking[*]}"
}

# The package, in $work/1; and one like it that is newer, in $work/2.
build() {
    make deb --no-print-directory PROFILE="$profile"
    mkdir "$work/1" "$work/2"
    cp "$(dirname "$built")"/debian/vmsnap_*.deb "$work/1/"
    dpkg-deb --raw-extract "$work"/1/*.deb "$work/newer"
    sed -i 's/^Version: .*/&+newer/' "$work/newer/DEBIAN/control"
    dpkg-deb --root-owner-group -Znone --build "$work/newer" "$work/2" >/dev/null
    say "built $(basename "$work"/1/*.deb) and $(basename "$work"/2/*.deb)"
}

finish() {
    # Whatever is mounted in there was seen by the script alone that mounted it, and is gone.
    as_root rm -rf --one-file-system "$work"
}

cd "$top"
install_tools
mkdir -p "$cache"
work=$(mktemp --directory --tmpdir="$cache")
trap finish EXIT
trap 'exit 130' INT TERM
cargo build --quiet --profile "$profile" --bins --example demo
build
lintian --allow-root --fail-on error "$work"/1/*.deb
say "lintian finds no error"
as_root unshare --mount "$here/root.sh" "$cache/clean"
as_root unshare --mount "$here/installed.sh" "$work" "$built"
as_root unshare --mount "$here/root.sh" "$cache/machine" \
    systemd-sysv dbus udev kmod procps linux-image-cloud-amd64 apparmor \
    libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils
as_root "$here/machine.sh" "$work"
say ok
