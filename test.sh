#!/usr/bin/env bash
# All tests on this machine (CPU, no network). Options go to pytest:
# bash test.sh tests/test_train.py -k resume; -m slow for the long ones.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")"
requirements=requirements_test.txt
. .ci/venv.sh
"$python" -m pytest --numprocesses auto --maxprocesses 2 --dist worksteal "$@"
echo "all tests passed; next: bash demo.sh"
