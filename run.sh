#!/usr/bin/env bash
# bash run.sh demo   makes a video from a prompt with the embedded checkpoint
# bash run.sh test   runs every check and test
# Each makes its own environment in .venv the first time (Python 3.10 to 3.13 is all it needs) and reuses it afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'run.sh: %s\n' "$*" >&2; exit 1; }

# The environment is built anew when what it is built from changes.
environment() { # $1: extras, e.g. "[test]"
    python=.venv/bin/python
    if [ ! -x "$python" ] && [ ! -x .venv/Scripts/python.exe ]; then
        system= # the first that will do: on Windows, python3 may be the Store's stub, which only advertises
        for each in python3 python; do
            "$each" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && system=$each && break
        done
        [ -n "$system" ] || fail "no Python 3.10 to 3.13 found: install one (python3 here is: $(python3 --version 2>&1 || true))"
        say "creating the environment .venv with $("$system" --version)"
        "$system" -m venv .venv || { rm -rf .venv; fail "could not create .venv (on Debian and Ubuntu: apt install python3-venv)"; }
    fi
    [ -x "$python" ] || python=.venv/Scripts/python.exe
    built_from=$("$python" -c 'import hashlib, sys; print(hashlib.sha256(b"".join(open(f, "rb").read() for f in sys.argv[1:])).hexdigest()[:16])' pyproject.toml constraints.txt)
    stamp=".venv/installed-${1//[^a-z]/}-$built_from"
    if [ ! -e "$stamp" ]; then
        say "installing the project${1:+ with its extras $1} (minutes the first time: PyTorch is large)"
        "$python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".$1"
        touch "$stamp"
    fi
}

# The tests drive a real ComfyUI where one can be had; its requirements go into the same environment.
comfyui() {
    if ! COMFYUI_PATH=$("$python" tests/comfyui/checkout.py); then
        say "NO COMFYUI: the tests of the nodes in a real ComfyUI will be skipped (the reason is above)"
        return
    fi
    export COMFYUI_PATH
    say "testing with the ComfyUI in $COMFYUI_PATH"
    stamp=".venv/comfyui-$("$python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()[:16])' "$COMFYUI_PATH/requirements.txt")"
    if [ ! -e "$stamp" ]; then
        "$python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt -r "$COMFYUI_PATH/requirements.txt"
        touch "$stamp"
    fi
}

case "${1:-}" in
demo)
    environment ""
    shift
    say "sampling videos with the embedded checkpoint, into outputs/"
    [ $# -gt 0 ] || set -- --seed 1 \
        --prompt "a red 3 moves right slowly and bounces, on a navy ground" \
        --prompt "a yellow 7 moves down fast and stops, on a black ground" \
        --prompt "a green 5 moves left fast and bounces, on a maroon ground"
    "$python" -m diag_core generate "$@"
    ;;
test)
    environment "[test]"
    shift
    comfyui
    say "ruff"
    "$python" -m ruff check .
    say "mypy"
    "$python" -m mypy
    say "pytest"
    "$python" -m pytest "$@"
    ;;
*)
    sed -n '2,4s/^# //p' run.sh
    exit 2
    ;;
esac
