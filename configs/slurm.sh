#!/usr/bin/env bash
# A recipe on a SLURM cluster, one task per GPU:
#   sbatch configs/slurm.sh configs/imagenet/convnext_dcls_tiny.yaml /data/imagenet runs/tiny
# When its time is nearly over, or it is preempted, every task saves and stops (exit code 143) and the job queues again;
# it then goes on from where it was. Adapt the numbers, and activate your environment here or before sbatch.
#SBATCH --job-name=dcls
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=10
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

config=$1 data=$2 run=$3
resume=()
if [ -f "$run/checkpoints/last.ckpt" ]; then
    resume=(--ckpt_path last)
fi
srun python -m train fit --config "$config" --data.root "$data" --trainer.default_root_dir "$run" \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.strategy ddp \
    ${resume[@]+"${resume[@]}"}
code=$?
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
