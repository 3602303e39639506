#!/usr/bin/env bash
# Runs a command on the test bed: sets it up first, and afterwards ends what the set-up had to start.
#
# usage: run.sh [--with-python] COMMAND...
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
options=()
if [ "${1:-}" = --with-python ]; then
    options=("$1")
    shift
fi
finish() {
    # After an interrupt the guards of guests and daemons are still at work.
    flock --exclusive --timeout 30 "$here/../../.testbed/guards" true || true
    "$here/setup.sh" --stop
}
trap finish EXIT
# The command gets an interrupt too; this script lives on to see its end.
trap : INT TERM
"$here/setup.sh" "${options[@]}"
PATH=$HOME/.cargo/bin:$PATH:/usr/sbin:/sbin "$@"
