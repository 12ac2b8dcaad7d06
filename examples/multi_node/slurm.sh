#!/bin/bash
# Training on two nodes of 8 GPUs under SLURM: sbatch examples/multi_node/slurm.sh, from the root of the repository.
#
# Of the numbers three must agree, and a run whose numbers do not says so and ends at once:
#   --nodes = trainer.num_nodes, --ntasks-per-node = trainer.devices, and as many GPUs per node.
# env.num_envs and update.minibatch_size are per task, total_env_steps counts all tasks; docs/scaling.md has the rest.

#SBATCH --job-name=cheetah
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=08:00:00

# 120 seconds before the time is up: finish the iteration, save, and go back into the queue.
#SBATCH --signal=SIGUSR1@120
#SBATCH --requeue

# the virtual environment lies where all nodes see it, like the run directory
source .venv/bin/activate

# resume=auto starts the run the first time, and goes on with it after each requeueing
srun lightning-ppo train halfcheetah trainer.num_nodes=2 trainer.devices=8 trainer.accelerator=gpu \
  trainer.strategy=ddp run_dir=runs/cheetah resume=auto
