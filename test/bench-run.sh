#!/bin/bash
# How fast programs start: koinon run beside Debian's slurm-wlm and GNU parallel,
# on this machine, in one run. A table on standard output. It needs root, and
# what `test/deps.sh bench` installs; what is missing is left out and said so.
# RUNS and TASKS set how much is measured.
set -euo pipefail
RUNS=${RUNS:-200} TASKS=${TASKS:-1000}
cd "$(dirname "$0")/.."
koinon=$PWD/bin/koinon
dir=$(mktemp -d /tmp/koinon-bench-run-XXXXXX)
pids=()

finish() {
	for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
	"$koinon" dev stop --dir "$dir/dev" >/dev/null 2>&1 || true
	for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
	rm -rf "$dir"
}
trap finish EXIT

# latency NAME CMD...: RUNS runs one after the other, p50 and p99 in ms.
latency() {
	local name=$1
	shift
	hyperfine -N --warmup 5 --runs "$RUNS" --export-json "$dir/times" "$*" >/dev/null 2>&1
	awk '/"times"/ { on = 1; next } /\]/ { on = 0 } on { print $1 * 1000 }' "$dir/times" | sort -n |
		awk -v name="$name" '{ t[NR] = $1 } END { printf "%-30s p50 %7.1f ms   p99 %7.1f ms\n", name, t[int(NR * 0.5 + 0.5)], t[int(NR * 0.99 + 0.5)] }'
}

# rate NAME CMD...: one run of TASKS tasks, tasks a second.
rate() {
	local name=$1 a b
	shift
	a=${EPOCHREALTIME/./}
	"$@" </dev/null >/dev/null
	b=${EPOCHREALTIME/./}
	awk -v name="$name" -v n="$TASKS" -v us=$((b - a)) 'BEGIN { printf "%-30s %7.0f tasks/s\n", name, n * 1e6 / us }'
}

# slurm starts munge, slurmctld and slurmd, without systemd.
slurm() {
	local host
	host=$(hostname -s)
	install -d -o munge -g munge -m 0755 "$dir/munge"
	dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 status=none
	chown munge:munge "$dir/munge/key" && chmod 0400 "$dir/munge/key"
	chmod 0755 "$dir"
	setpriv --reuid=munge --regid=munge --clear-groups munged --foreground --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
		--pid-file="$dir/munge/pid" --seed-file="$dir/munge/seed" >"$dir/munge.log" 2>&1 &
	pids+=($!)
	cat >"$dir/slurm.conf" <<-CONF
		ClusterName=bench
		SlurmctldHost=$host(127.0.0.1)
		SlurmctldPort=$((20000 + RANDOM % 5000))
		SlurmdPort=$((25000 + RANDOM % 5000))
		SlurmUser=root
		AuthType=auth/munge
		AuthInfo=socket=$dir/munge/socket
		CryptoType=crypto/munge
		ProctrackType=proctrack/linuxproc
		TaskPlugin=task/none
		SelectType=select/cons_tres
		SelectTypeParameters=CR_CPU
		ReturnToService=2
		MaxArraySize=10001
		StateSaveLocation=$dir/slurm/state
		SlurmdSpoolDir=$dir/slurm/spool
		SlurmctldPidFile=$dir/slurm/ctld.pid
		SlurmdPidFile=$dir/slurm/d.pid
		SlurmctldLogFile=$dir/slurm/ctld.log
		SlurmdLogFile=$dir/slurm/d.log
		NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
		PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
	CONF
	mkdir -p "$dir/slurm/state" "$dir/slurm/spool"
	export SLURM_CONF=$dir/slurm.conf
	slurmctld -D >/dev/null 2>&1 &
	pids+=($!)
	slurmd -D -N "$host" >/dev/null 2>&1 &
	pids+=($!)
	for _ in {1..60}; do
		if [ "$(sinfo -h -o %t 2>/dev/null)" = idle ]; then return 0; fi
		sleep 0.5
	done
	echo "slurm does not come up:"
	tail -5 "$dir"/slurm/*.log "$dir/munge.log" 2>&1 || true
	return 1
}

echo "$(nproc) CPUs, load $(cut -d' ' -f1 /proc/loadavg); $RUNS runs, $TASKS tasks; $("$koinon" --version)"
export KOINON_CONFIG=$dir/dev/client.toml
for nodes in 1 3; do
	"$koinon" dev up --detach --nodes $nodes --dir "$dir/dev" --mount "$dir/mnt" >/dev/null 2>&1
	cd "$dir/mnt"
	for _ in {1..5}; do "$koinon" run -n $nodes -- true </dev/null; done
	latency "koinon run -- true, nodes: $nodes" "$koinon" run -- true
	rate "koinon run --array" "$koinon" run -c 0.1 --array "0-$((TASKS - 1))" -- true
	rate "the same, a CPU each" "$koinon" run --array "0-$((TASKS - 1))" -- true
	cd /
	"$koinon" dev reset --yes --dir "$dir/dev" >/dev/null 2>&1
done

if command -v srun >/dev/null && command -v munged >/dev/null; then
	if slurm; then
		latency "srun true" srun -Q true
		TASKS=$((TASKS / 10)) rate "sbatch --wait --array" sbatch --wait --array="0-$((TASKS / 10 - 1))" --output=/dev/null --wrap true
	fi
else
	echo "slurm: not installed"
fi
if command -v parallel >/dev/null; then
	rate "parallel" parallel --will-cite -j "$(nproc)" true ::: $(seq "$TASKS")
else
	echo "parallel: not installed"
fi
