#!/usr/bin/env bash
# Starts each target of the image as a cluster would, with a read-only root, no capability and state on a volume, and
# waits until its own health check says that it is healthy.
# usage: healthy.sh docker|podman TARGET...
set -euo pipefail

engine=$1
shift

for target in "$@"; do
    volume=$("$engine" volume create)
    container=$("$engine" run --detach --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
        --volume "$volume:/srv/ml-platform/var" "ml-platform:$target")
    status=starting
    for _ in $(seq 180); do
        status=$("$engine" inspect --format '{{.State.Health.Status}}' "$container")
        [ "$status" = starting ] || break
        sleep 1
    done
    echo "$target: $status"
    [ "$status" = healthy ] || "$engine" logs "$container"
    "$engine" rm --force "$container" > /dev/null
    "$engine" volume rm "$volume" > /dev/null
    [ "$status" = healthy ]
done
