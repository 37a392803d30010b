#!/bin/sh
# Installs the Debian packages that a target needs, and only when one is missing.
#   setup.sh            what the demo and the tests need
#   setup.sh generate   what rebuilding the BPF objects needs
#   setup.sh bench      the peers that the guard is measured beside
#   setup.sh k3s        what building K3s and running it on this machine needs
#   setup.sh kernels    what the virtual machines of test-kernels and e2e need; QEMU and the kernels come by themselves
set -eu

case "${1:-run}" in
run) want="build-essential ca-certificates iproute2 mmdebstrap nlohmann-json3-dev libstb-dev npm busybox-static runc" ;;
generate) want="clang-14 llvm-14" ;;
bench) want="bubblewrap busybox-static git runc" ;;
k3s) want="build-essential busybox-static conntrack ipset iproute2 iptables libseccomp-dev pkg-config util-linux" ;;
kernels) want="bash busybox-static ca-certificates curl dosfstools e2fsprogs findutils git iproute2 mmdebstrap mount mtools xfsprogs xz-utils zstd" ;;
*)
	echo "setup.sh: got '$1', want nothing, 'generate', 'bench', 'k3s' or 'kernels'" >&2
	exit 2
	;;
esac

missing=""
for p in $want; do
	# npm may come from elsewhere than Debian.
	[ "$p" = npm ] && command -v npm >/dev/null && continue
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
[ -z "$missing" ] && exit 0

echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of names
apt-get install -y -qq --no-install-recommends $missing >/dev/null
