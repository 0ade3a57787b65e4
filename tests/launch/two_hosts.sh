# In namespaces of its own: two hosts with a wire between them, a launch script on each. two_hosts.sh SCRIPT WORD…
set -euo pipefail
unshare --net sleep 300 &
other=$!
trap 'kill "$other"' EXIT
until [[ $(readlink "/proc/$other/ns/net") != "$(readlink /proc/self/ns/net)" ]]; do sleep 0.05; done
there() { nsenter --target "$other" --net "$@"; }
ip link add wire type veth peer name wire netns "$other"
ip address add 10.77.0.1/24 dev wire
there ip address add 10.77.0.2/24 dev wire
for device in lo wire; do
    ip link set "$device" up
    there ip link set "$device" up
done
export NODES=2 HEAD=10.77.0.1
NODE=1 there "$@" &
second=$!
NODE=0 "$@"
wait "$second"
