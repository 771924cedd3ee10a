#!/usr/bin/env bash
# `make` finds a .venv that is newer than the locks, so that nothing is installed: the tests' own was made from them.
set -euo pipefail
git clone --quiet "$STUB_REPOSITORY" .
git checkout --quiet --detach "$STUB_COMMIT"
mkdir -p .venv
ln -sfn "$STUB_ENVIRONMENT/bin" .venv/bin
touch .venv/.runtime .venv/.dev
# The environment holds an editable installation of another folder: this clone's comes first.
echo "PYTHONPATH=$PWD" >> "$GITHUB_ENV"
