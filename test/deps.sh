#!/bin/sh
# Installs what `make test` and `make generate` need on a bare Debian machine.
# It does nothing where all of it is there already.
set -eu

case "${1:-test}" in
test) want="fusermount3:fuse3 git:git sqlite3:sqlite3 rsync:rsync tar:tar getfattr:attr setpriv:util-linux ip:iproute2 strace:strace mariadbd:mariadb-server redis-server:redis-server" ;;
generate) want="protoc:protobuf-compiler" ;;
bench) want="hyperfine:hyperfine srun:slurm-wlm munged:munge parallel:parallel setpriv:util-linux etcd:etcd-server" ;;
*) echo "usage: $0 test|generate|bench" >&2; exit 2 ;;
esac

missing=""
for pair in $want; do
	command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
# Galera is a library, not a command.
[ "${1:-test}" != test ] || [ -e /usr/lib/galera/libgalera_smm.so ] || missing="$missing galera-4"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "missing packages:$missing; as root: apt-get install -y$missing" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq $missing >/dev/null
