#!/usr/bin/env bash
# Features by many jobs that fill one store together, each on a GPU of its own:
#   sbatch launch/slurm/extract_array.sh --config configs/YOUR.yaml features.shards=32
# Keep features.shards at several times the number of jobs. A job that dies, or that SLURM never starts, leaves its
# files to the others; the same command goes on where things stopped. Exit code 1 of a job: some images could not be
# read (failures.jsonl beside the store).
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
# SLURM runs a copy of this file, so its own place says nothing; submit from the project's folder
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
exec srun python launch/extract_features.py "$@"
