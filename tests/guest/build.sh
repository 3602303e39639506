#!/usr/bin/env bash
# Builds a small real Linux guest out of Debian packages: kernel and initramfs with busybox, the QEMU guest
# agent, the counter and the writer.
#
# usage: build.sh FOLDER      FOLDER/vmlinuz and FOLDER/initrd.gz are made, unless they are there and no source
#                             of theirs has changed. Packages are kept in FOLDER/packages: only the first
#                             build needs the network.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)

sources=$(cd "$here" && sha256sum build.sh init shutdown ./*.c ./*.h)
if [ -s "$out/vmlinuz" ] && [ -s "$out/initrd.gz" ] && [ "$(cat "$out/sources" 2>/dev/null)" = "$sources" ]; then
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=$out/packages
mkdir -p "$packages"

kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/ { print $2; exit }'
}

download() {
    local kernel
    kernel=$(kernel_package)
    [ -n "$kernel" ] && (cd "$packages" && apt-get download -qq "$kernel" busybox-static qemu-guest-agent)
}

if ! ls "$packages"/linux-image-*.deb "$packages"/busybox-static_*.deb "$packages"/qemu-guest-agent_*.deb \
    >/dev/null 2>&1; then
    rm -f "$packages"/*.deb
    # The lists may be missing or too old for what the archive still has.
    if ! download 2>/dev/null; then
        if [ "$(id -u)" -eq 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi
        download
    fi
fi

cd "$work"
for package in "$packages"/*.deb; do dpkg-deb --extract "$package" tree; done
modules=$(find tree -type d -path '*/lib/modules/*' -prune | head -n 1)
release=$(basename "$modules")
# Debian 13 has the modules under usr/lib; modprobe and depmod look in lib.
[ -e tree/lib ] || ln -s usr/lib tree/lib

root=$work/root
mkdir -p "$root"/{bin,dev,etc,lib64,mnt,modules,proc,run,sbin,sys,tmp,var}
ln -s /run "$root/var/run"
ln -s /proc/mounts "$root/etc/mtab"
install -m 755 "$here/init" "$root/init"
install -m 755 "$here/shutdown" "$root/sbin/shutdown"
install -m 755 "$(find tree -type f -path '*bin/busybox' | head -n 1)" "$root/bin/busybox"
agent=$(find tree -type f -path '*bin/qemu-ga' | head -n 1)
install -m 755 "$agent" "$root/bin/qemu-ga"
libraries=$(ldd "$agent")
if grep 'not found' <<<"$libraries" >&2; then exit 1; fi
while read -r library; do
    install -D -m 755 "$(readlink -f "$library")" "$root$library"
done < <(grep -o '/[^ ]*' <<<"$libraries")
for program in counter writer; do
    gcc -O2 -Wall -Wextra -static -pthread -o "$root/bin/$program" "$here/$program.c"
done

# Load order as modprobe gives it; what is built into the kernel it leaves out.
PATH=$PATH:/usr/sbin:/sbin
depmod --basedir "$work/tree" "$release"
for module in virtio_pci virtio_blk virtio_console ext4 crc32c_generic efivarfs; do
    modprobe --dirname "$work/tree" --set-version "$release" --show-depends "$module" 2>/dev/null || true
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >files
while read -r file; do
    name=$(basename "$file")
    case $name in
    *.xz) name=${name%.xz} && xz --decompress --stdout "$file" >"$root/modules/$name" ;;
    *) cp "$file" "$root/modules/$name" ;;
    esac
    echo "$name" >>"$root/modules/order"
done <files

(cd "$root" && find . -print0 | cpio --null --create --format newc --owner 0:0 --quiet) | gzip -1 >"$out/initrd.gz"
cp tree/boot/vmlinuz-* "$out/vmlinuz"
echo "$sources" >"$out/sources"
