#!/bin/sh
# Formatting, vet, staticcheck and, where its database answers, govulncheck.
set -eu
tool() { name=$1; shift; go tool -modfile=internal/tools/go.mod "$name" "$@"; }

drift=$(tool gofumpt -l $(git ls-files '*.go' | grep -v '_bpfe[lb]\.go$' | grep -v '_\(x86\|arm64\)_bpfel.go$'))
if [ -n "$drift" ]; then
	echo "lint: gofumpt would change these files; run 'go tool -modfile=internal/tools/go.mod gofumpt -w FILE':" >&2
	echo "$drift" >&2
	exit 1
fi
go vet ./...
go vet -tags nvml ./installer/host
tool staticcheck ./...

# The vulnerability database is a web service; an offline machine says so and goes on.
if out=$(tool govulncheck ./... 2>&1); then
	echo "$out" | tail -n 3
elif echo "$out" | grep -qiE 'dial tcp|no such host|connection refused|fetching vulnerabilities|Forbidden'; then
	echo "lint: govulncheck skipped, its database can't be reached: $(echo "$out" | tail -n 1)"
else
	echo "$out" >&2
	exit 1
fi
