#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice (TPU VMs), over gcloud's ssh:
#
#   export TPU=my-slice ZONE=us-central2-b
#   launch/tpu_vm.sh setup                    copies this checkout to every host and installs it
#   launch/tpu_vm.sh train --config=experiments/X.py --workdir=/mnt/runs/x
#   launch/tpu_vm.sh log                      follows the output of host 0
#   launch/tpu_vm.sh stop                     saves and ends; `train` with the same flags goes on
#
# /mnt/runs is a file system that all hosts mount (Filestore, or a bucket through gcsfuse); prepared
# data may be there too (--config.data.data_dir), or each host prepares its own.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

on() { # on WORKER COMMAND: runs it on that host, or on `all`
  gcloud compute tpus tpu-vm ssh "${TPU:?name of the slice}" --zone="${ZONE:?its zone}" --worker="$1" --command="$2"
}

action=${1:-}
shift || true
case $action in
  setup)
    gcloud compute tpus tpu-vm scp --recurse "$here" "${TPU:?name of the slice}:jaxrec" --zone="${ZONE:?its zone}" --worker=all
    on all "cd jaxrec && python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]'"
    ;;
  train) # goes on after the connection is gone; JAX finds the other hosts by itself
    flags=$(printf ' %q' "$@")
    on all "cd jaxrec || exit
            setsid nohup .venv/bin/python -u -m jaxrec.train$flags >train.log 2>&1 </dev/null &
            echo \$! >train.pid"
    ;;
  log) on 0 "tail -n 100 -F jaxrec/train.log" ;;
  stop) on all "kill -TERM \$(cat jaxrec/train.pid)" ;;
  *)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    exit 2
    ;;
esac
