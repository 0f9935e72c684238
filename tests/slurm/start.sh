#!/usr/bin/env bash
# A Slurm of one node with two CPUs on this machine, for tests: `start.sh FOLDER` starts munge, the
# controller and the node's daemon with all their files in FOLDER, and waits until the node is idle.
# It needs root and Debian's slurm-wlm and munge. Use it with SLURM_CONF=FOLDER/slurm.conf; end it
# with `stop.sh FOLDER`.
set -euo pipefail
folder=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
mkdir -p "$folder"/{state,spool,munge}
host=$(hostname -s)

dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
chmod 700 "$folder/munge" && chmod 400 "$folder/munge/key"
socket=$(mktemp -d /tmp/jaxrec-munge.XXXXXX)/socket # a socket's path must be short
echo "$socket" >"$folder/munge/where"
chmod 755 "$(dirname "$socket")"
munged --force --key-file="$folder/munge/key" --socket="$socket" --seed-file="$folder/munge/seed" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munge/log"

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }
cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket
CredType=cred/munge
SlurmctldPort=$(port)
SlurmdPort=$(port)
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_interval=1,sched_min_interval=0
MpiDefault=none
ReturnToService=2
KillWait=30
JobRequeue=1
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF="$folder/slurm.conf"
slurmctld -c
slurmd -c
for _ in $(seq 100); do
  if [ "$(sinfo -h -o %t 2>/dev/null)" = idle ]; then exit 0; fi
  sleep 0.2
done
echo "the node did not become idle" >&2
tail -n 20 "$folder"/slurm*.log >&2
"$here/stop.sh" "$folder"
exit 1
