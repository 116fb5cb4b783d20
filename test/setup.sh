#!/bin/sh
# setup.sh PROGRAM=PACKAGE...: installs the Debian packages of programs that are
# missing. Nothing that is there is replaced or removed, and no service that a
# package brings is started, now or at the next boot. Needs root only when
# something is missing.
set -eu

missing=
for pair in "$@"; do
	command -v "${pair%%=*}" >/dev/null 2>&1 || missing="$missing ${pair#*=}"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "missing:$missing. This is not a Debian or Ubuntu machine: install them by hand, then try again." >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "missing:$missing. Run this as root, or: sudo apt-get install$missing" >&2
	exit 1
fi
echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
# A policy of 101 keeps Debian's packages from starting their services.
policy=/usr/sbin/policy-rc.d
ours=
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod +x "$policy"
	ours=yes
fi
trap '[ -z "$ours" ] || rm -f "$policy"' EXIT
log=$(mktemp)
# What is there already stays: --no-remove refuses where packages conflict.
if ! { apt-get update && apt-get install -y --no-install-recommends --no-remove $missing; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "apt-get could not install$missing (whole log: $log)" >&2
	exit 1
fi
rm -f "$log"
# Nor do they start with the machine: demo and tests start their own.
if [ -d /run/systemd/system ]; then
	for package in $missing; do
		dpkg-query -L "$package" | sed -n 's,^\(/usr\)\{0,1\}/lib/systemd/system/\([^/]*\.service\)$,\2,p' |
			while read -r unit; do systemctl --quiet disable "$unit" 2>/dev/null || true; done
	done
fi
