#!/bin/bash
# Installs what the tests and the BPF build need, by name and only what is missing. Starts no service.
# "deps.sh kernels" installs what `make test-kernels` needs instead.
set -euo pipefail

packages=(
	clang-19 llvm-19 libbpf-dev # BPF; the committed objects are built with exactly this clang
	redis-server redis-tools nginx wrk tcpdump
	haproxy socat postgresql iperf3
	tshark
	iproute2 procps curl
)
services=(redis-server nginx haproxy postgresql iperf3)
case ${1-} in
'') ;;
kernels) packages=(qemu-system-x86 busybox-static kmod xz-utils debian-archive-keyring) services=() ;;
*) echo "deps: no set of packages named $1" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
	echo "deps: not a Debian system; install the equivalent of: ${packages[*]}" >&2
	exit 0
fi

installed() {
	[[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

missing=()
for p in "${packages[@]}"; do
	installed "$p" || missing+=("$p")
done
((${#missing[@]})) || exit 0

if ((EUID)); then
	exec sudo "$0" "$@"
fi
echo "deps: installing ${missing[*]}"

export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
guard=/usr/sbin/policy-rc.d
guarded=
cleanup() {
	rm -f "$log"
	[[ -z $guarded ]] || rm -f "$guard"
}
trap cleanup EXIT
if [[ ! -e $guard ]]; then # asked by Debian's packages before they start a service
	guarded=yes
	printf '#!/bin/sh\nexit 101\n' >"$guard"
	chmod +x "$guard"
fi

apt() {
	apt-get -o DPkg::Lock::Timeout=120 "$@" </dev/null >"$log" 2>&1
}
install() {
	apt install -y --no-install-recommends "$@"
}

if ! apt update; then
	cat "$log" >&2
	echo "deps: apt-get update failed" >&2
	exit 1
fi
if ! install "${missing[@]}"; then
	failed=()
	for p in "${missing[@]}"; do # once more one by one, to know which
		install "$p" || { failed+=("$p"); cat "$log" >&2; }
	done
	if ((${#failed[@]})); then
		echo "deps: could not install ${failed[*]}" >&2
		exit 1
	fi
fi

# A service that came only for the tests does not start at the next boot either.
if [[ -d /run/systemd/system ]]; then
	for p in "${missing[@]}"; do
		for s in "${services[@]}"; do
			[[ $p != "$s" ]] || systemctl disable --quiet "$s" || true
		done
	done
fi
