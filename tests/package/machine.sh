#!/usr/bin/env bash
# Boots a Debian root with systemd as process 1 in a VM, and lets inside.sh install and try the package there. All that it says
# comes over the VM's console. The VM ends with this process.
#
# usage: machine.sh WORK     WORK has the packages 1/*.deb and 2/*.deb
set -euo pipefail
work=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
root=$work/machine
PATH=$PATH:/usr/sbin:/sbin
# A boot under emulation takes a minute or two. This is for a machine that is busy with other things.
patience=${VMSNAP_MACHINE_PATIENCE:-3600}

say() { echo "machine: $*"; }

make_root() {
    cp -a "$top/.testbed/package/machine" "$root"
    local revision
    for revision in 1 2; do
        mkdir -p "$root/srv/test/$revision"
        cp "$work/$revision"/*.deb "$root/srv/test/$revision/"
    done
    cp "$here/inside.sh" "$here/vm.xml" "$root/srv/test/"
    # The test itself, once the machine is up. Its end is the machine's.
    cat >"$root/etc/systemd/system/inside.service" <<UNIT
[Unit]
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
# Not a terminal: nobody is shown how far things have come.
ExecStart=/bin/sh -c "/srv/test/inside.sh 2>&1 | cat"
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
[Install]
WantedBy=graphical.target
UNIT
    ln -sf /usr/lib/systemd/system/graphical.target "$root/etc/systemd/system/default.target"
    mkdir -p "$root/etc/systemd/system/graphical.target.wants"
    ln -s ../inside.service "$root/etc/systemd/system/graphical.target.wants/"
    ln -sf /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service"
    echo vmsnap >"$root/etc/hostname"
    echo '/dev/vda / ext4 defaults 0 0' >"$root/etc/fstab"
    truncate --size 4G "$work/machine.img"
    mke2fs -q -t ext4 -d "$root" "$work/machine.img"
}

# Some machines have the device without a processor that can: see has_kvm in tests/bed/definition.rs.
accelerator() { if [ -w /dev/kvm ] && grep -qE '\b(vmx|svm)\b' /proc/cpuinfo; then echo kvm; else echo tcg; fi; }

boot() {
    # The kernel, by the link that Debian keeps.
    setpriv --pdeathsig TERM timeout --foreground "$patience" qemu-system-x86_64 \
        -machine pc -accel "$(accelerator)" -cpu max -smp 2 -m 1024 -nodefaults -no-reboot -display none \
        -kernel "$root/vmlinuz" -initrd "$root/initrd.img" \
        -append 'root=/dev/vda rw console=ttyS0 quiet no_timer_check systemd.show_status=no' \
        -drive "file=$work/machine.img,format=raw,if=virtio,cache=unsafe" \
        -serial stdio </dev/null 2>"$work/qemu.log" | sed --unbuffered 's|\r||' | tee "$work/console"
}

make_root
say "booting Debian with systemd; this takes some minutes"
boot || cat "$work/qemu.log" >&2
grep -q '^inside: ok$' "$work/console" || {
    echo "machine: the package did not pass under systemd" >&2
    exit 1
}
say ok
