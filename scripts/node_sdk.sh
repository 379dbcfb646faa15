#!/bin/sh
# Installs the OpenAI SDK for Node, at the version pinned in tests/node/package.json, into .cache/node for the tests.
# Never fails: where there is no Node or no npm registry, the tests that need it are skipped by name.
set -u
cd "$(dirname "$0")/.."

skip() {
    echo "node-sdk: $1; the Node SDK tests will be skipped" >&2
    exit 0
}

command -v node >/dev/null 2>&1 || skip "node is not installed"
command -v npm >/dev/null 2>&1 || skip "npm is not installed"

target=.cache/node
if [ -d "$target/node_modules/openai" ] && cmp -s tests/node/package.json "$target/package.json"; then
    exit 0
fi
rm -rf "$target"
mkdir -p "$target/new"
cp tests/node/package.json "$target/new/"
# No lock file: it would carry host names. The version is pinned and install scripts are off. Without a registry npm
# would go on trying for minutes; the tests can do without.
if ! npm install --prefix "$target/new" --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error \
    --fetch-retries=1 --fetch-timeout=30000 --fetch-retry-maxtimeout=10000 \
    >"$target/npm.log" 2>&1; then
    tail -n 5 "$target/npm.log" >&2
    skip "npm could not install the SDK"
fi
mv "$target/new/node_modules" "$target/node_modules"
# Last, so that a half-finished install is not taken for a whole one.
mv "$target/new/package.json" "$target/package.json"
rm -rf "$target/new"
