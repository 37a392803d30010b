#!/bin/sh
# Builds a CPU-only `ollama` from its pinned module sources.
#
#   build.sh OUTPUT
#
# Every byte compiled is either a Go module held by this folder's go.sum or a
# Debian header package: nlohmann-json3-dev, libstb-dev. A C++ compiler
# (g++) must be there too. Needs about 5 CPU-minutes from a cold build cache.
#
# A second run with the same inputs does nothing: OUTPUT.key holds the hash of
# the inputs and of the output. The binary needs glibc only, because libstdc++
# and libgcc are linked statically: a bare Debian or Ubuntu host can run it.
set -eu

[ $# -eq 1 ] || { echo "usage: build.sh OUTPUT" >&2; exit 2; }
mkdir -p "$(dirname "$1")"
out=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cd "$(dirname "$0")"
cxx=${CXX:-g++}

for need in go "$cxx"; do
	command -v "$need" >/dev/null || {
		echo "build.sh: no $need in PATH; install it and run again" >&2
		exit 1
	}
done
for h in nlohmann/json.hpp stb/stb_image.h; do
	echo "#include <$h>" | "$cxx" -x c++ -E - >/dev/null 2>&1 || {
		echo "build.sh: header $h not found; run: apt-get install nlohmann-json3-dev libstb-dev" >&2
		exit 1
	}
done

key=$({ cat go.mod go.sum build.sh; go env GOVERSION GOOS GOARCH; "$cxx" -dumpfullversion; } | sha256sum | cut -d' ' -f1)
sum() { sha256sum <"$1" | cut -d' ' -f1; }
if [ -x "$out" ] && [ "$(cat "$out.key" 2>/dev/null)" = "$key $(sum "$out")" ]; then
	exit 0
fi

export GOWORK=off CGO_ENABLED=1
mod() { go list -mod=readonly -m -f "$2" "$1"; }
go mod download github.com/ollama/ollama github.com/gen2brain/malgo
malgo=$(mod github.com/gen2brain/malgo '{{.Dir}}')
version=$(mod github.com/ollama/ollama '{{.Version}}')

# Module zips leave out folders named `vendor`, and with them three headers
# that llama.cpp includes. Two come from Debian; miniaudio.h from malgo.
# The folder stands beside the build cache, under a name made of its content: the
# name is part of the compiler's flags, hence of the key under which
# the cache keeps these 5 minutes of work for any OUTPUT.
archive=$("$cxx" -print-file-name=libstdc++.a)
extra=$(go env GOCACHE)/clawbox-engine-$(cat "$malgo/miniaudio.h" "$archive" | sha256sum | cut -c1-16)
tmp=$extra.$$
trap 'rm -rf "$tmp" "$out.part"' EXIT
trap 'exit 1' INT TERM HUP
if [ ! -d "$extra" ]; then
	mkdir -p "$tmp/miniaudio" "$tmp/lib"
	cp "$malgo/miniaudio.h" "$tmp/miniaudio/"
	# ollama's own flags say -lstdc++, which beats -static-libstdc++. A folder that
	# holds the archive alone, searched first, makes the linker take it.
	cp "$archive" "$tmp/lib/"
	mv -T "$tmp" "$extra" 2>/dev/null || [ -d "$extra" ] # another build may have been first
fi

rm -f "$out.key"
CGO_CPPFLAGS="-I$extra" go build -mod=readonly -trimpath -buildvcs=false -o "$out.part" \
	-ldflags "-s -w -buildid= -X github.com/ollama/ollama/version.Version=${version#v} -extldflags '-static-libgcc -L$extra/lib'" \
	github.com/ollama/ollama

# Ask the result, not the flags.
if ldd "$out.part" | grep -E 'libstdc|libgcc'; then
	echo "build.sh: the C++ runtime was linked dynamically: the binary would need packages on the host" >&2
	exit 1
fi
mv "$out.part" "$out"
echo "$key $(sum "$out")" >"$out.key"
