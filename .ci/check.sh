#!/usr/bin/env bash
# For contributors: lint, format and types, before a commit. Settings: pyproject.toml
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements=requirements_test.txt
. .ci/venv.sh
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
