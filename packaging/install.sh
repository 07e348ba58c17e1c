#!/bin/sh
# Makes the agent of this checkout a systemd service, or takes the service away again.
#
#   install.sh           user, units, and an example configuration where there is none
#   install.sh remove    units; user, configuration and a relay at work stay
#
# May be repeated: after an upgrade of the checkout it brings the units up to date. With DESTDIR it
# writes below that folder and starts and stops nothing, as package builds want it.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd -P)
destination=${DESTDIR:-}
units=$destination/etc/systemd/system

die() {
	printf 'install.sh: %s\n  %s\n' "$1" "$2" >&2
	exit 1
}

[ -n "$destination" ] || [ "$(id -u)" = 0 ] || die "this needs root" "Run it again with sudo."

case ${1:-} in
'') ;;
remove)
	[ -n "$destination" ] || systemctl disable --quiet --now shunt-agent.service
	rm -f "$units/shunt-agent.service" "$units/shunt-program.service" \
		"$destination/etc/sysusers.d/shunt.conf" "$destination/etc/tmpfiles.d/shunt.conf"
	[ -n "$destination" ] || systemctl daemon-reload
	exit 0
	;;
*)
	echo "usage: install.sh [remove]" >&2
	exit 2
	;;
esac

if [ -z "$destination" ]; then
	"$root/provision.sh" run
	# The agent's user cannot keep what Python compiles, and would have it done at each start.
	(cd "$root" && .venv/bin/python -m compileall -q loader tools transceiver)
fi

# The units are written for /opt/shunt; where else the checkout is, they follow.
install -d "$units" "$destination/etc/sysusers.d" "$destination/etc/tmpfiles.d" "$destination/etc/shunt"
for unit in shunt-program.service shunt-agent.service; do
	sed "s#/opt/shunt/#$root/#" "$root/packaging/systemd/$unit" >"$units/$unit.new"
	chmod 644 "$units/$unit.new"
	mv "$units/$unit.new" "$units/$unit"
done
install -m 644 "$root/packaging/systemd/shunt.sysusers" "$destination/etc/sysusers.d/shunt.conf"
install -m 644 "$root/packaging/systemd/shunt.tmpfiles" "$destination/etc/tmpfiles.d/shunt.conf"
[ -e "$destination/etc/shunt/agent.toml" ] ||
	install -m 644 "$root/packaging/agent.toml" "$destination/etc/shunt/agent.toml"
systemd-sysusers ${destination:+--root="$destination"} shunt.conf
[ -z "$destination" ] || exit 0

systemd-tmpfiles --create shunt.conf
chown -hR shunt:shunt /sys/fs/bpf/shunt # also what an agent that root ran has pinned
systemctl daemon-reload
setpriv --reuid=shunt --regid=shunt --clear-groups test -x "$root/shunt" ||
	die "the user shunt cannot read $root" "Put the checkout where everybody may go, such as /opt/shunt."
cat <<EOF
Now write /etc/shunt/agent.toml ('$root/shunt config check' checks it), and then:
  systemctl enable --now shunt-agent
EOF
