#!/usr/bin/env bash
# Extract features by several jobs that fill one store together, one GPU each:
#   sbatch launch/slurm/extract_array.sh --config configs/YOUR.yaml features.shards=32
# Set features.shards to several times the number of jobs. If a job crashes, or SLURM never starts it, the others take
# over its shards; the same command resumes. Exit code 1 of a job: some images could not be read (failures.jsonl next to
# the store).
#SBATCH --job-name=extract
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
# SLURM runs a copy of this file, so its path does not lead to the project: submit from the project folder
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
exec srun python launch/extract_features.py "$@"
