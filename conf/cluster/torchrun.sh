#!/bin/bash
# On every node:  NODES=2 GPUS=8 HEAD=host:29500 conf/cluster/torchrun.sh fit --config … --config conf/trainer/ddp.yaml …
# On one machine: GPUS=8 conf/cluster/torchrun.sh fit --config … --config conf/trainer/fsdp2.yaml …
# torchrun starts a run again when a process dies; --ckpt_path=last lets it go on where it was.
set -euo pipefail
cd "$(dirname "$0")/../.."
NODES=${NODES:-1} GPUS=${GPUS:-8}
# A store of its own for each start: in one that is shared, ranks may find addresses of the life before, and wait for ever.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
if [ "$NODES" = 1 ]; then
  meeting=(--standalone)
else
  meeting=(--rdzv-backend=c10d --rdzv-endpoint="${HEAD:?HEAD=host:port of one of the nodes, the same on all}")
fi
exec .venv/bin/torchrun "${meeting[@]}" --nnodes="$NODES" --nproc-per-node="$GPUS" --max-restarts="${RESTARTS:-3}" \
  -m lightning_switchkd "$@" --trainer.num_nodes="$NODES" --trainer.devices="$GPUS" --ckpt_path=last
