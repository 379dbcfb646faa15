#!/bin/sh
# Writes requirements/*.txt from the ranges in pyproject.toml: exact versions with hashes for Python 3.11 and newer on
# every platform, and neither index, host name nor path in them. Usage: scripts/lock.sh UV [--upgrade | --upgrade-package NAME]
set -eu
cd "$(dirname "$0")/.."

uv=$1
shift

compile() {
    # --no-config: a machine's own index settings must not show. UV_SYSTEM_CERTS: for machines behind their own authority.
    UV_SYSTEM_CERTS=1 "$uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links "$@"
}

compile pyproject.toml --extra learn --output-file requirements/run.txt "$@"
# Tests run with exactly what users run with: the run set is a constraint on the others.
compile pyproject.toml --group dev --constraint requirements/run.txt --output-file requirements/dev.txt "$@"
compile requirements/build.in --constraint requirements/dev.txt --output-file requirements/build.txt "$@"

if grep -nE '://|^-|file:|(^|[[:space:]])/' requirements/*.txt; then
    echo "requirements files must name no host, index or path" >&2
    exit 1
fi
wc -l requirements/*.txt
