#!/bin/bash
# One run on several nodes: sbatch deploy/slurm.sh --config=configs/cifar100_resnet18.py --workdir=...
# Options of sbatch before the file's name replace those below. PYTHON names another interpreter.
#SBATCH --job-name=gini_jax --nodes=2 --ntasks-per-node=4 --gpus-per-task=1
#SBATCH --cpus-per-task=4 --time=12:00:00 --signal=TERM@120 --requeue --open-mode=append
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch by itself
srun "${PYTHON:-.venv/bin/python}" launch.py --distributed "$@"
status=$?
if [ $status -eq 143 ]; then # saved after SIGTERM; a run that ends with an error is not queued again
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
