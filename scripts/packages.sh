#!/bin/bash
# Makes the deb and the rpm in bin/ from bin/shunt: packages.sh VERSION.
set -euo pipefail
cd "$(dirname "$0")/.."

# Pinned: another one may lay the packages out differently.
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0

stage=bin/package
rm -rf $stage
mkdir -p $stage/man $stage/completions
cp bin/shunt $stage/
for page in docs/man/*.1; do
	gzip -9n <"$page" >"$stage/man/${page##*/}.gz"
done
for shell in bash zsh fish; do
	bin/shunt completion $shell >$stage/completions/$shell
done
{
	echo "shunt: https://github.com/shuntnet/shunt"
	echo "Go code is Apache-2.0, the programs for the kernel are GPL-2.0-only OR BSD-2-Clause."
	for text in LICENSE LICENSES/*; do
		printf '\n=== %s ===\n' "$text"
		cat "$text"
	done
} >$stage/copyright

cp deploy/packages/nfpm.yaml $stage/nfpm.yaml
while read -r unit; do
	printf '  - src: %s\n    dst: /usr/lib/systemd/system/%s\n' "$unit" "${unit##*/}" >>$stage/nfpm.yaml
done < <(find deploy -name '*.service' | sort)

# v1.2.3-4-gabc as 1.2.3+4.gabc, a bare commit as 0.0.0+abc: neither format takes a dash.
version=$1
[[ $version == v[0-9]* ]] || version=v0.0.0-$version
version=${version#v}
[[ $version != *-* ]] || version="${version%%-*}+$(tr - . <<<"${version#*-}")"
export PACKAGE_VERSION=$version PACKAGE_ARCH
PACKAGE_ARCH=$(go env GOARCH)
# The same packages from the same commit.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

for format in deb rpm; do
	go run $nfpm package --config $stage/nfpm.yaml --packager $format --target bin/
done
