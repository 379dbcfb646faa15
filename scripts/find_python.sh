#!/bin/sh
# Prints a Python that can run Tierwise (3.11 or newer), or says what to install. $PYTHON wins when it is set.
set -eu

usable() {
    # An interpreter's name may be a shim that refuses to start, so it is asked rather than trusted.
    "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    candidates=$PYTHON
else
    candidates="python3 python3.13 python3.12 python3.11 python3.14 python"
fi

for candidate in $candidates; do
    if usable "$candidate"; then
        command -v "$candidate"
        exit 0
    fi
done

found=$( (${PYTHON:-python3} --version || true) 2>&1 | head -n 1)
cat >&2 <<MESSAGE
Tierwise needs Python 3.11 or newer; found: ${found:-none}.
  Debian, Ubuntu:  apt-get install python3 python3-venv
  Fedora:          dnf install python3.12
  macOS:           brew install python@3.13
A Python elsewhere can be named:  make run PYTHON=/path/to/python3.12
MESSAGE
exit 1
