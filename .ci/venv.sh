# Sourced by demo.sh, test.sh and check.sh: leaves $python, the interpreter of .venv, with what the file $requirements
# (default requirements.txt) lists installed. Makes .venv when there is none and installs only when a requirements file has
# changed since.
requirements=${requirements:-requirements.txt}

fail() { echo "$(basename "$0"): error: $*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or newer, found $(python3 --version 2>&1 || echo none); install one and run PYTHON=/path/to/python3 bash $0"
}

python=$PWD/.venv/bin/python
if ! "$python" -m pip --version >/dev/null 2>&1; then
    base=$(find_python) || exit 1
    "$base" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$base has no venv module; on Debian or Ubuntu: sudo apt install python3-venv"
    echo "making .venv with $("$base" --version) ..."
    "$base" -m venv --clear .venv || fail "could not make $PWD/.venv"
fi
# Any change of any of them installs again; a set is installed once it has its line in the file.
mark=$(cat requirements*.txt | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if ! grep -qsxF "$requirements $mark" .venv/installed; then
    echo "installing $requirements into .venv (about 2 GB on a CPU machine, once) ..."
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
        fail "the installation did not finish; run bash $0 again, in China with PIP_INDEX_URL=https://mirrors.aliyun.com/pypi/simple/"
    # the larger set includes the other
    printf '%s\n' "requirements.txt $mark" "$requirements $mark" > .venv/installed
fi
