#!/bin/sh
# Installs what the tests in this folder need and this machine lacks. It is for Debian and its kin, wants root or sudo only if a
# package is missing, says nothing when all is well, and may run as often as one likes.
set -eu
cd "$(dirname "$0")"

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# quietly shows what a command printed only if it failed.
quietly() {
	"$@" >"$log" 2>&1 || {
		status=$?
		echo "setup.sh: failed: $*" >&2
		cat "$log" >&2
		exit "$status"
	}
}

as_root() {
	if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

have() { command -v "$1" >/dev/null 2>&1; }

has_paho() { [ -x "$1" ] && "$1" -c 'import paho.mqtt.client' 2>/dev/null; }

packages=
{ have mosquitto_pub && have mosquitto_sub && have mosquitto_rr; } || packages="$packages mosquitto-clients"
has_paho /usr/bin/python3 || has_paho "$(command -v python3 || true)" || packages="$packages python3-paho-mqtt"
have node || packages="$packages nodejs"
have npm || packages="$packages npm"
{ have cc && [ -e /usr/include/MQTTClient.h ]; } || packages="$packages gcc libc6-dev libpaho-mqtt-dev"
if [ -n "$packages" ]; then
	have apt-get || {
		echo "setup.sh: no apt-get here; please install what Debian calls:$packages" >&2
		exit 1
	}
	quietly as_root apt-get update
	# shellcheck disable=SC2086 # a list of names
	quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages
fi

cd mqttjs
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
	quietly npm ci --no-audit --no-fund
fi
