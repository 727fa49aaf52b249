#!/bin/bash
# On every node:   NODES=2 GPUS=8 HEAD=host:29500 docs/how-to/cluster/torchrun.sh fit --config … --config conf/trainer/ddp.yaml …
# On one machine:  GPUS=8 docs/how-to/cluster/torchrun.sh fit --config … --config conf/trainer/fsdp2.yaml …
# torchrun restarts the run when a process dies. --ckpt_path=last resumes from the last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/../../.."
NODES=${NODES:-1} GPUS=${GPUS:-8}
# One store per start: in a shared store, ranks can read addresses of the previous start and wait forever.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
if [ "$NODES" = 1 ]; then
  meeting=(--standalone)
else
  meeting=(--rdzv-backend=c10d --rdzv-endpoint="${HEAD:?Set HEAD=host:port of one node, the same on all nodes}")
fi
exec .venv/bin/torchrun "${meeting[@]}" --nnodes="$NODES" --nproc-per-node="$GPUS" --max-restarts="${RESTARTS:-3}" \
  -m lightning_switchkd "$@" --trainer.num_nodes="$NODES" --trainer.devices="$GPUS" --ckpt_path=last
