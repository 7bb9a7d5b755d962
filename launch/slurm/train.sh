#!/usr/bin/env bash
# One training run on the GPUs of one node, or of several:
#   sbatch launch/slurm/train.sh --config configs/YOUR.yaml
#   sbatch --nodes=2 launch/slurm/train.sh --config configs/YOUR.yaml
# training.resume=auto resumes a job that was requeued or submitted again from its latest checkpoint. Results do not
# depend on where it was interrupted. Five minutes before its time limit the job saves, ends and is requeued.
# PROCESSES=N sets the number of processes per node, without counting GPUs.
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"
processes="${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}"
share=$(( ${SLURM_CPUS_PER_TASK:-1} / processes ))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(( share > 0 ? share : 1 ))}"
# rendezvous on the first node, on a port that other jobs there do not use
nodes="$(scontrol show hostnames "${SLURM_JOB_NODELIST:?start this by sbatch}")"
first="${nodes%%$'\n'*}"
port="${MASTER_PORT:-$(( 20000 + SLURM_JOB_ID % 10000 ))}"
# the signal reaches this shell; torchrun forwards it to its processes, waits for them, and always returns 1
srun torchrun --nnodes "${SLURM_NNODES:-1}" --nproc_per_node "$processes" \
  --signals-to-handle SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout 240 \
  --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$first:$port" \
  launch/train_multitask.py "$@" training.resume=auto &
step=$! signaled=0 code=0
trap 'signaled=1; kill -USR1 "$step"' USR1
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do  # the signal ended the wait, not the step
  code=0
  wait "$step" || code=$?
done
if [ "$signaled" = 1 ] && [ "$code" != 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
