#!/bin/bash
# sbatch conf/cluster/slurm.sh MODEL=qwen2.5-0.5b-siglip DATA=llava TRAINER=ddp
# A recipe on one or several nodes; `--nodes` and `--gpus-per-node` below are handed on. SLURM announces the end of a job's
# time, or that others need the nodes, by SIGUSR1 two minutes ahead: Lightning saves, and puts the job into the queue again,
# which goes on bit for bit.
#SBATCH --job-name=switchkd
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=SIGUSR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=runs/slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run me by sbatch}"
# make stays in the batch step: the signal is for the processes that srun starts, a stage's ranks
exec make recipe LAUNCH=srun "$@" \
  ARGS="--trainer.num_nodes=$SLURM_NNODES --trainer.devices=${SLURM_GPUS_ON_NODE:-8} ${EXTRA:-}"
