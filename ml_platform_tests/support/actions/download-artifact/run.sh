#!/usr/bin/env bash
# One artifact by name, which must be there, into the path; several by pattern into folders of their names.
set -euo pipefail
mkdir -p "$TARGET"
if [ -n "$NAME" ]; then
    cp -R "$STUB_ARTIFACTS/$NAME/." "$TARGET/"
else
    for found in "$STUB_ARTIFACTS"/$PATTERN; do
        cp -R "$found" "$TARGET/"
    done
fi
