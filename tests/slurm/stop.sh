#!/usr/bin/env bash
# Ends what `start.sh FOLDER` has started.
folder=$(realpath "$1")
export SLURM_CONF="$folder/slurm.conf"
scancel --state=RUNNING 2>/dev/null
scancel --state=PENDING 2>/dev/null
for _ in $(seq 200); do
  [ -z "$(squeue -h 2>/dev/null)" ] && break # a job's daemon needs munge to end
  sleep 0.2
done
for name in slurmd slurmctld munge/; do
  [ -f "$folder/${name}pid" ] && pid="$folder/${name}pid" || pid="$folder/$name.pid"
  if [ -f "$pid" ]; then kill "$(cat "$pid")" 2>/dev/null; fi
done
if [ -f "$folder/munge/where" ]; then rm -rf "$(dirname "$(cat "$folder/munge/where")")"; fi
