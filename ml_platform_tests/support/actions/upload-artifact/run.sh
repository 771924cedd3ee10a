#!/usr/bin/env bash
# A path that is not there is a warning of the real action too.
set -euo pipefail
mkdir -p "$STUB_ARTIFACTS/$NAME"
if [ -d "$TARGET" ]; then
    cp -R "$TARGET/." "$STUB_ARTIFACTS/$NAME/"
elif [ -f "$TARGET" ]; then
    cp "$TARGET" "$STUB_ARTIFACTS/$NAME/"
fi
