#!/usr/bin/env bash
# Runs one target of the image without a container engine, as a cluster would: a read-only root, /tmp and the volume
# apart, no network but loopback, its own processes, user 10001 without a capability; waits for its own health check.
# usage, inside `unshare --mount --net --pid --fork --kill-child`: image_here.sh ROOT VOLUME PLAN
# PLAN is a JSON file: environment, command and health as lists of texts.
set -euo pipefail

root=$1 volume=$2 plan=$3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs tmpfs "$root/tmp" -o mode=1777
mount --bind "$volume" "$root/srv/ml-platform/var"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
ip link set lo up

listed() { jq --raw-output --arg name "$1" '.[$name][] | @sh' "$plan" | tr '\n' ' '; }
environment=() command=() health=()
eval "environment=($(listed environment))"
eval "command=($(listed command))"
eval "health=($(listed health))"

as_platform() {
    chroot "$root" /usr/bin/setpriv --reuid 10001 --regid 10001 --clear-groups --bounding-set=-all --inh-caps=-all \
        --no-new-privs /usr/bin/env -i "${environment[@]}" /bin/sh -c 'cd /srv/ml-platform && exec "$@"' sh "$@"
}

if as_platform touch /srv/ml-platform/written 2> /dev/null || as_platform touch /opt/ml-platform/written 2> /dev/null; then
    echo "the root can be written"
    exit 1
fi
as_platform id
as_platform grep CapEff /proc/self/status

as_platform "${command[@]}" > "$volume/../log.txt" 2>&1 &
server=$!
for _ in $(seq 90); do
    if as_platform "${health[@]}" > "$volume/../health.txt" 2>&1; then
        echo healthy
        exit 0
    fi
    kill -0 "$server" 2> /dev/null || break
    sleep 1
done
echo "never healthy:"
tail -n 20 "$volume/../health.txt" "$volume/../log.txt"
exit 1
