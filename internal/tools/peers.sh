#!/bin/sh
# Builds the peer that bundles are measured beside into the folder that is
# named, from the module proxy at an exact version, unless it is there. It is
# run, never linked or shipped.
set -eu
out=$1
version=v0.84.0
[ -x "$out/zarf" ] && "$out/zarf" version 2>/dev/null | grep -qx "$version" && exit 0
mkdir -p "$out"
src=$(${GO:-go} mod download -json "github.com/zarf-dev/zarf@$version" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p')
out=$(cd "$out" && pwd)
echo "peers: building zarf $version (about ten minutes of CPU time)"
cd "$src"
${GO:-go} build -trimpath -ldflags "-s -w -X github.com/zarf-dev/zarf/src/config.CLIVersion=$version" -o "$out/zarf" .
