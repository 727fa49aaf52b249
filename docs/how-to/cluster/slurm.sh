#!/bin/bash
# sbatch docs/how-to/cluster/slurm.sh PIPELINE=full_size MODEL=qwen2.5-0.5b-siglip TRAINER=ddp
# `make pipeline` on one or several nodes. `--nodes` and `--gpus-per-node` below are passed on to the trainer.
# SLURM sends SIGUSR1 two minutes before it ends or preempts the job. Lightning then saves a checkpoint and requeues the
# job, which resumes bit for bit.
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
cd "${SLURM_SUBMIT_DIR:?Submit this script with sbatch}"
# make runs in the batch step, and srun starts the ranks of a stage: SLURM sends the signal to these
exec make pipeline LAUNCH=srun "$@" \
  ARGS="--trainer.num_nodes=$SLURM_NNODES --trainer.devices=${SLURM_GPUS_ON_NODE:-8} ${EXTRA:-}"
