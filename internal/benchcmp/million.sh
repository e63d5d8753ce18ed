#!/bin/sh
# Opens a million connections with one subscription each to Dunlin, all on this machine, and reports what that takes. From the root of the repository:
#
#	sh internal/benchcmp/million.sh [COUNT [FLAG...]]
#
# COUNT is how many connections (default 1000000). Each FLAG goes to the load generator: see go run ./internal/benchcmp/load -h. The script changes nothing on
# the system. If a setting is too small for COUNT, it says which, and how to raise it, and ends.
set -eu
cd "$(dirname "$0")/../.."

count=${1:-1000000}
[ $# -eq 0 ] || shift
case $count in
'' | *[!0-9]* | 0) echo "million.sh: expected a number of connections, got \"$count\"" >&2; exit 2 ;;
esac
addr=${ADDR:-127.0.0.1:1883}
missing=

# lacks says that a setting is too small, and what to do.
lacks() {
	missing=yes
	echo "million.sh: $1 is $2, and $count connections need $3. $4" >&2
}

# setting checks one of the kernel, if this system has it: its name, the least that it must be, and which of its numbers counts.
setting() {
	file=/proc/sys/$(echo "$1" | tr . /)
	[ -r "$file" ] || return 0
	have=$(awk -v n="${3:-1}" '{ print $n }' "$file")
	[ "$have" -ge "$2" ] || lacks "$1" "$have" "$2" "As root: sysctl -w $1=\"${4:-$2}\""
}

# Descriptors: one for each connection, in the broker and in the load generator.
files=$((count + 256))
hard=$(ulimit -Hn)
if [ "$hard" = unlimited ] || [ "$hard" -ge "$files" ]; then
	ulimit -n "$files"
else
	lacks "the limit of descriptors (ulimit -Hn)" "$hard" "$files" "As root, for this shell: prlimit --pid \$\$ --nofile=$files"
fi
setting fs.nr_open "$files"
setting fs.file-max $((2 * files))
setting fs.epoll.max_user_watches $((2 * files))

# Ports: the connections come from 240 addresses, and half of the ports of each stay free for those that are just closed.
ports=$((count / 120 + 1000))
low=$(awk '{ print $1 }' /proc/sys/net/ipv4/ip_local_port_range)
high=$(awk '{ print $2 }' /proc/sys/net/ipv4/ip_local_port_range)
[ $((high - low)) -ge "$ports" ] || lacks net.ipv4.ip_local_port_range "$low to $high" "$ports ports" \
	"As root: sysctl -w net.ipv4.ip_local_port_range=\"$((60999 - ports)) 60999\""

# Up to 512 connections for each processor are on their way at a time.
waiting=$((512 * $(nproc)))
setting net.core.somaxconn "$waiting"
setting net.ipv4.tcp_max_syn_backlog "$waiting"

# Memory: a page for each of two sockets at worst while they are busy, which is at most one in four at a time. The numbers are pages.
pages=$((count / 2))
setting net.ipv4.tcp_mem "$pages" 3 "$((pages / 2)) $((pages * 3 / 4)) $pages"
free=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
need=$((count * 14 / 1024 + 256))
[ "$free" -ge "$need" ] || lacks "the free memory" "$free MB" "$need MB" "Give a smaller COUNT."

# A firewall that follows connections has an entry for each.
setting net.netfilter.nf_conntrack_max $((2 * count + 1000))

[ -z "$missing" ] || exit 1

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
(cd examples/server && GOWORK=off go build -o "$dir/server" .)
(cd internal/benchcmp && GOWORK=off go build -o "$dir/load" ./load)

# What a connection may count for is more than it takes: see MaxMemory.
places=$((count + 100))
"$dir/load" -scenario million -count "$count" -addr "$addr" -settle 5s -hold 120s -warm 5s -dur 60s -exec "$dir/server -listen $addr -log-level error \
-sys-interval 0 -max-connections $places -max-sessions $places -max-memory $((count / 64 + 64))MiB" "$@"
