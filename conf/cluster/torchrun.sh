#!/bin/bash
# On every node:  NODES=2 GPUS=8 HEAD=host:29500 conf/cluster/torchrun.sh fit --config … --config conf/trainer/ddp.yaml …
# On one machine: GPUS=8 conf/cluster/torchrun.sh fit --config … --config conf/trainer/fsdp2.yaml …
# torchrun starts a run again when a process dies; --ckpt_path=last lets it go on where it was.
set -euo pipefail
cd "$(dirname "$0")/../.."
NODES=${NODES:-1} GPUS=${GPUS:-8}
exec .venv/bin/torchrun --nnodes="$NODES" --nproc-per-node="$GPUS" --max-restarts="${RESTARTS:-3}" \
  --rdzv-backend=c10d --rdzv-endpoint="${HEAD:-localhost:0}" \
  -m lightning_switchkd "$@" --trainer.num_nodes="$NODES" --trainer.devices="$GPUS" --ckpt_path=last
