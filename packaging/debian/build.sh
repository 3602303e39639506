#!/usr/bin/env bash
# Makes the Debian package of programs that are built: see `make deb`. Installs what it needs for that.
#
# usage: build.sh PROFILE PROGRAMS REVISION     PROGRAMS is the directory with the programs of that profile
set -euo pipefail
profile=$1 programs=$2 revision=$3
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Later ones will do, too; this one is tried.
cargo_deb=3.8.0
# What `make install` brings beside the programs. Cargo.toml looks for it there.
stage=$programs/package

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

install_tools() {
    # It reads off the programs which packages they need, and without it cargo-deb only warns.
    if ! command -v dpkg-shlibdeps >/dev/null; then
        as_root apt-get update --quiet=2
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends dpkg-dev
    fi
    cargo deb --version >/dev/null 2>&1 || cargo install --locked --version "$cargo_deb" cargo-deb
}

# Whoever builds a package answers for it: as Debian's own tools have it, or who made the last commit.
maintainer() {
    if [ -n "${DEBEMAIL:-}" ]; then
        echo "${DEBFULLNAME:-vmsnap maintainers} <$DEBEMAIL>"
    else
        git -C "$top" log -1 --format='%an <%ae>'
    fi
}

version() { cargo pkgid | sed 's/.*[#@]//'; }

changelog() {
    cat <<CHANGELOG
vmsnap ($(version)-$revision) unstable; urgency=medium

  * What is new is in changelog.gz, beside this.

 -- $(maintainer)  $(git -C "$top" log -1 --format=%aD)
CHANGELOG
}

cd "$top"
install_tools
rm -rf "$stage"
make --no-print-directory --assume-old=build PROFILE="$profile" DESTDIR="$stage" install
gzip --best --no-name "$stage"/usr/share/man/man*/*
changelog | gzip --best --no-name >"$stage/changelog.Debian.gz"
# One package lies there, so that whoever installs it need not name its version.
rm -f "${programs%/*}"/debian/vmsnap[_-]*
# Nobody is given what is built to be debugged: it need not be small.
fast=()
[ "$profile" != dev ] || fast=(--fast)
exec cargo deb --no-build --profile "$profile" "${fast[@]}" --maintainer "$(maintainer)" --deb-revision "$revision"
