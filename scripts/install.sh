#!/usr/bin/env bash
# Make a virtual environment and install stfuse into it, editable, once.
#
#   scripts/install.sh FOLDER [GROUP]     GROUP: a dependency group of pyproject.toml (test, dev, doc)
#
# A note in FOLDER says which checkout and which pyproject.toml it was filled from, so that a second call
# with nothing changed returns at once. Set PYTHON to choose the interpreter of a new environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${1:?usage: scripts/install.sh FOLDER [GROUP]}
group=${2:-}
note=$venv/.stfuse-${group:-core}
state="$(pwd -P) $(cksum <pyproject.toml)"

# A name on PATH proves nothing (version managers put failing stand-ins there), so each candidate is tried.
works() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}

find_python() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        works "$PYTHON" && echo "$PYTHON"
        return
    fi
    for name in python3.14 python3.13 python3.12 python3 python; do
        if works "$name"; then
            echo "$name"
            return
        fi
    done
    return 1
}

describe() {
    "$1" -c 'import platform, sys; print("Python", platform.python_version(), "at", sys.executable)'
}

make_environment() {
    local python
    if [ -e "$venv/bin/python" ] && "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info >= (3, 12))' 2>/dev/null; then
        echo "stfuse needs Python 3.12 or later, and $venv holds $(describe "$venv/bin/python")." >&2
        echo "Choose another folder with VENV=folder, or remove this one." >&2
        return 1
    fi
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "Using the environment in $venv: $(describe "$venv/bin/python")"
        return
    fi
    if ! python=$(find_python); then
        echo "stfuse needs Python 3.12 or later with its venv and ensurepip modules, and none was found" >&2
        echo "(tried: ${PYTHON:-python3.14, python3.13, python3.12, python3, python})." >&2
        echo "Install one (on Debian and Ubuntu also its python3-venv package), or name it: make PYTHON=/path/to/python ..." >&2
        return 1
    fi
    echo "Making an environment in $venv with $(describe "$python")"
    # An environment that is half made is made anew; a folder that is none is never emptied.
    if [ -e "$venv/pyvenv.cfg" ]; then
        "$python" -m venv --clear "$venv"
    else
        "$python" -m venv "$venv"
    fi
}

# pip prints hundreds of lines: they go to a file, and one line says how far it is.
pip_install() {
    local log=$venv/install.log
    "$venv/bin/python" -m pip install --disable-pip-version-check "$@" 2>&1 | tee "$log" | (
        found=0
        said=
        while IFS= read -r line; do
            case $line in
                Collecting*) found=$((found + 1)); said="$found packages found" ;;
                *Downloading\ http* | *Downloading\ *.whl*) said="$found packages found, fetching ${line##*Downloading }" ;;
                "Installing collected"*) said="installing" ;;
                *) continue ;;
            esac
            if [ -t 1 ]; then
                printf '\r\033[K  %.100s' "$said"
            elif [ "$said" = installing ] || { [ "${line#Collecting}" != "$line" ] && [ $((found % 50)) = 0 ]; }; then
                echo "  $said"
            fi
        done
        if [ -t 1 ]; then printf '\r\033[K'; fi
    ) || {
        grep -v '^WARNING' "$log" | tail -n 20 >&2
        echo "The installation failed; all of pip's words are in $log" >&2
        return 1
    }
}

if [ -x "$venv/bin/python" ] && [ -e "$note" ] && [ "$(cat "$note")" = "$state" ]; then
    exit 0
fi
make_environment
# The editable install points to one checkout: what was noted for another one no longer holds.
for old in "$venv"/.stfuse-*; do
    if [ -e "$old" ] && [ "$(cat "$old")" != "$state" ]; then rm "$old"; fi
done
echo "Installing stfuse${group:+ and its group '$group'} with all they need (the first time this takes some minutes) ..."
"$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "pip>=25.1" # the first that knows groups
pip_install --editable . ${group:+--group "$group"}
echo "$state" >"$note"
echo "Installed."
