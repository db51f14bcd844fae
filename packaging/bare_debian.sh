#!/usr/bin/env bash
# Runs quickstart.sh and the tests on a bare Debian 12, in a folder made by debootstrap (root; about a
# gigabyte, and on 2 cores a quarter of an hour). The checkout's committed state is what is tested.
#
#   packaging/bare_debian.sh [FOLDER]     FOLDER: default a new one under /var/tmp, removed afterwards
#
# MIRROR=URL picks another mirror than deb.debian.org; STEPS="example test" are what is run (default).
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
mirror=${MIRROR:-http://deb.debian.org/debian}

if [ "$(id -u)" -ne 0 ] || ! command -v debootstrap >/dev/null; then
  echo "bare_debian: skipped, needs root and debootstrap (apt install debootstrap)" >&2
  exit 77
fi
if [ $# -gt 0 ]; then
  root=$1
else
  root=$(mktemp -d /var/tmp/coterie-bare.XXXXXX)
fi
# Mounts go before the folder does: what is mounted must never be removed.
clean_up() {
  for mount in proc dev/pts dev; do
    if mountpoint -q "$root/$mount"; then umount "$root/$mount" || return; fi
  done
  [ $# -gt 0 ] || rm -rf --one-file-system "$root"
}
trap 'clean_up "$@"' EXIT

step() { printf '\n===== %s (%ss)\n' "$*" "$SECONDS"; }

step "debootstrap bookworm"
[ -x "$root/bin/bash" ] || debootstrap --variant=minbase bookworm "$root" "$mirror" >"$root.log" 2>&1 ||
  { tail -n 20 "$root.log" >&2; exit 1; }
rm -f "$root.log"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount --bind /dev/pts "$root/dev/pts"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# What a mirror behind a proxy needs to be reached.
for file in /etc/apt/apt.conf.d/*proxy*; do
  [ ! -e "$file" ] || cp "$file" "$root/etc/apt/apt.conf.d/"
done
mkdir -p "$root/root/coterie"
git -C "$source" archive HEAD | tar -x -C "$root/root/coterie"
inside() { chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C bash -c "$1"; }

step "installing what quickstart.sh needs"
inside "cd /root/coterie && ./quickstart.sh deps" >/dev/null
for command in ${STEPS:-example test}; do
  step "./quickstart.sh $command"
  TIMEFORMAT="$command: %0R s on $(nproc) cores, %0U + %0S s of processor time, packages not counted"
  time inside "cd /root/coterie && ./quickstart.sh $command" | tail -n 40
done
step "done"
