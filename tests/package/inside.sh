#!/usr/bin/env bash
# The package on a machine with systemd as process 1: run by machine.sh, in a VM that is made for it and thrown away after it.
set -eEuo pipefail
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive HOME=/srv/test SYSTEMD_COLORS=0 SYSTEMD_URLIFY=0
unit=vmsnapd.service
vm=web
image=/var/lib/libvirt/images/web.qcow2

say() { echo "inside: $*"; }
fail() {
    echo "inside: FAILED: $*"
    systemctl status --no-pager --full "$unit" || true
    journalctl --no-pager -u "$unit" -n 40 || true
    exit 1
}
# Each thing that is shown; what it was is seen if it fails.
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

# A "!" alone stops nothing.
fails() { ! "$@"; }

of_unit() { systemctl show --value --property "$1" "$unit"; }

# Waits until a command is true. systemd has no event for these but its bus, which no shell can wait on.
until_true() {
    local tries
    for tries in $(seq 600); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.5
    done
    fail "not so after $tries tries: $*"
}
is_active() { [ "$(of_unit ActiveState)" = active ]; }
# Not "activating", as one that is to be started again is.
has_failed() { [ "$(of_unit ActiveState)" = failed ]; }
has_been_started_again() { [ "$(of_unit NRestarts)" -gt "$1" ] && is_active; }
status_says() { of_unit StatusText | grep -qF -- "$1"; }
journal_has() { journalctl --no-pager --unit "$unit" | grep -qF -- "$1"; }

start_vm() {
    qemu-img create -q -f qcow2 "$image" 16M
    sed -e "s|NAME|$vm|; s|IMAGE|$image|" /srv/test/vm.xml >/srv/test/web.xml
    virsh --quiet define /srv/test/web.xml
    virsh --quiet start "$vm"
    process=$(cat /run/libvirt/qemu/web.pid)
}
vm_runs_on() { [ "$(cat /run/libvirt/qemu/web.pid)" = "$process" ] && [ "$(virsh --quiet domstate "$vm")" = running ]; }
snapshots() { vmsnap snapshot list "$vm" -o json; }

install() {
    apt install /srv/test/1/*.deb
    systemctl is-active "$unit"
    [ "$(systemctl is-enabled "$unit")" = enabled ]
    # An answer means that the unit was not active before the daemon had said so.
    vmsnapd health
    [ "$(of_unit Type)" = notify ]
    until_true vmsnapd health --part libvirt
    until_true status_says 'libvirt is up'
    say "active and enabled: $(of_unit StatusText)"
    getent group vmsnap
    [ "$(stat --format %a:%U:%G /etc/vmsnapd)" = 750:root:vmsnap ]
    [ "$(stat --format %a:%U:%G /var/lib/vmsnapd)" = 700:root:vmsnap ]
    [ "$(stat --format %a:%G /run/vmsnapd/vmsnapd.sock)" = 660:vmsnap ]
    systemd-analyze verify --man=no /usr/lib/systemd/system/vmsnapd.{service,socket}
    systemd-analyze security --no-pager --threshold=25 "$unit" | tail -n 1
    [ -n "$(journalctl --quiet --output cat _SYSTEMD_UNIT="$unit")" ]
    say "the journal has: $(journalctl --quiet --output cat --lines 1 _SYSTEMD_UNIT="$unit")"
}

# What the unit lets the daemon do: overlays, memory, merges by QEMU, and by qemu-img.
confined() {
    start_vm
    local name
    for name in first second third; do
        vmsnap snapshot create "$vm" "$name"
    done
    memory
    vmsnap snapshot delete "$vm/first" --yes
    say "a merge under a VM that runs"
    virsh --quiet destroy "$vm"
    vmsnap snapshot delete "$vm/second" --yes
    say "a merge under a VM that is off"
    denied
    vmsnap snapshot list "$vm" --tree
}

# Whoever writes it: under AppArmor libvirt does, and the guest stands still meanwhile.
memory() {
    vmsnap snapshot create "$vm" with-memory --memory
    say "memory is captured"
}

# The last call says that QEMU was denied something, and that all is as it was.
is_denied() {
    cat /srv/test/denied
    grep -q 'Permission denied' /srv/test/denied
    grep -q 'changed: nothing' /srv/test/denied
}

# AppArmor's profile of a VM that was started on a chain lets QEMU write to the active layer alone, before libvirt 12.1.
denied() {
    virsh --quiet start "$vm"
    process=$(cat /run/libvirt/qemu/web.pid)
    grep -qs "deny .*$image" /etc/apparmor.d/libvirt/*.files || return 0
    fails vmsnap snapshot delete "$vm/third" --yes 2>/srv/test/denied
    is_denied
    say "what AppArmor denies is told, and changes nothing"
}

reload() {
    local before
    before=$(of_unit MainPID)
    systemctl reload "$unit"
    [ "$(of_unit MainPID)" = "$before" ]
    is_active
    say "reloaded"
}

# A shorter watchdog; and a mark, made only if the thaw before it has succeeded.
watch_closely() {
    mkdir -p /etc/systemd/system/vmsnapd.service.d
    cat >/etc/systemd/system/vmsnapd.service.d/test.conf <<DROP_IN
[Service]
WatchdogSec=10
ExecStopPost=/usr/bin/touch /run/vmsnapd/thawed
DROP_IN
    systemctl daemon-reload
    systemctl restart "$unit"
}

# The daemon gets a signal that it cannot answer: systemd is to start it again, and to thaw before.
survives() {
    local restarts
    restarts=$(of_unit NRestarts)
    rm -f /run/vmsnapd/thawed
    kill "$1" "$(of_unit MainPID)"
    until_true has_been_started_again "$restarts"
    [ -e /run/vmsnapd/thawed ]
    vmsnapd health
}

ended() {
    watch_closely
    survives -STOP
    journal_has 'Watchdog timeout'
    say "a daemon that stood still was ended by the watchdog and started again, after a thaw"
    survives -KILL
    say "a daemon that was killed was started again, after a thaw"
    rm -r /etc/systemd/system/vmsnapd.service.d
    systemctl daemon-reload
    systemctl restart "$unit"
}

activated() {
    systemctl stop "$unit"
    systemctl start vmsnapd.socket
    fails is_active
    vmsnap version
    is_active
    say "a call started the daemon"
    systemctl stop vmsnapd.socket "$unit"
    systemctl start "$unit"
}

misconfigured() {
    echo 'nonsense = true' >/etc/vmsnapd/vmsnapd.toml
    fails systemctl restart "$unit"
    until_true has_failed
    [ "$(of_unit ExecMainStatus)" = 78 ]
    rm /etc/vmsnapd/vmsnapd.toml
    systemctl start "$unit"
    say "a daemon with a wrong configuration ended with 78 and was left alone"
}

upgrade() {
    local before main
    before=$(snapshots)
    main=$(of_unit MainPID)
    apt install /srv/test/2/*.deb
    systemctl is-active "$unit"
    [ "$(of_unit MainPID)" != "$main" ]
    [ "$(snapshots)" = "$before" ]
    vm_runs_on
    say "upgraded: the daemon is a new one, the snapshots are those from before, the VM has run on"
}

remove() {
    apt remove vmsnap
    fails is_active
    [ "$(of_unit LoadState)" = not-found ]
    fails pgrep -x vmsnapd
    [ -s /var/lib/vmsnapd/catalog.db ]
    vm_runs_on
    apt purge vmsnap
    [ -s /var/lib/vmsnapd/catalog.db ]
    fails systemctl is-enabled "$unit"
    say "removed and purged: no daemon, no unit; the catalog is there and the VM runs"
}

until_true virsh --quiet list
install
confined
reload
ended
activated
misconfigured
upgrade
remove
say ok
