#!/bin/sh
# Creates .venv with the packages that requirements.txt pins and hw1lib itself, unless that is done.
# `setup.sh dev` adds the packages for tests and clusters. Called by the Makefile.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
needed_gb=16 # .venv 6.5, pip's download cache 3, results and checkpoints of the demo 6

stop() { # one clear paragraph
    printf '\n%s\n' "$*" | fold -s -w 80 >&2
    exit 1
}

files="requirements.txt pyproject.toml"
[ "${1:-}" = dev ] && files="$files requirements-cluster.txt requirements-dev.txt"
# shellcheck disable=SC2086
wanted=$(cat $files | cksum)
stamp=.venv/.installed${1:+-$1}
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

if [ ! -x .venv/bin/python ]; then
    command -v "$python" > /dev/null || stop "$python was not found. Install Python 3.11 or newer," \
        "or name one: make report PYTHON=/path/to/python3."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || stop "$python is" \
        "$("$python" -V), but Python 3.11 or newer is needed. Name one: make report" \
        "PYTHON=/path/to/python3.12."
    "$python" -c 'import venv, ensurepip' 2> /dev/null || stop "This Python cannot create virtual" \
        "environments: its module venv (or ensurepip) is missing. On Debian or Ubuntu, install the" \
        "package python3-venv, then run the same command again."
    free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
    [ "$free_kb" -ge $((needed_gb * 1024 * 1024)) ] || stop "Too little disk space in $(pwd):" \
        "$((free_kb / 1024 / 1024)) GB are free, but the packages and the results need about" \
        "$needed_gb GB. Free some space, or clone into a folder on another disk."
    rm -rf .venv
    "$python" -m venv .venv || stop "The virtual environment .venv could not be created. The" \
        "reason is above."
fi

echo "Installing packages into .venv (6.5 GB); this takes several minutes the first time"
quiet=-q
[ -t 1 ] && quiet= # in a terminal, show pip's progress
pip() { .venv/bin/python -m pip --disable-pip-version-check install $quiet "$@"; }
failed="The packages could not be installed; pip's reason is above. If there is no network, connect, \
or set PIP_INDEX_URL to a mirror. If the disk is full, free about $needed_gb GB. Then run the \
same command again: it continues where it stopped."
pip -r requirements.txt || stop "$failed"
[ "${1:-}" = dev ] && { pip -r requirements-dev.txt || stop "$failed"; }
pip --no-deps --no-build-isolation -e . || stop "$failed"
printf '%s\n' "$wanted" > "$stamp"
