#!/bin/sh
# Installs what the tests use beside Go, where it is missing: Mosquitto and its tools, tshark, Python's paho-mqtt, Node, a browser. For Debian and its kin.
set -eu
cd "$(dirname "$0")/.."

missing=
has() { command -v "$1" >/dev/null 2>&1; }
PATH=$PATH:/usr/sbin
has mosquitto || missing="$missing mosquitto"
has chromium || missing="$missing chromium"
has tshark || missing="$missing tshark"
has xxd || missing="$missing xxd"
if [ -n "$missing" ]; then
	has apt-get || { echo "setup.sh: no apt-get here; please install:$missing" >&2; exit 1; }
	root=
	[ "$(id -u)" -eq 0 ] || root=sudo
	log=$(mktemp)
	# The package starts a broker of its own where there is an init system; the tests do not want it.
	{ $root apt-get update && DEBIAN_FRONTEND=noninteractive $root apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1 ||
		{ cat "$log" >&2; exit 1; }
	rm -f "$log"
fi
sh internal/interop/setup.sh
