#!/usr/bin/env bash
# Write before_rooms.tar.xz: runs of the last versions in which all modules lay in one folder.
# usage: make_before_rooms.sh CLONE_AT_9ee6580 CLONE_AT_3200e92
set -euo pipefail
target=$(cd "$(dirname "$0")" && pwd)/before_rooms.tar.xz first=$1 last=$2
work=$(mktemp -d)
export OMP_NUM_THREADS=1 XDG_STATE_HOME=$work/state
mkdir -p "$work/state/lightning_ppo" "$work/before_rooms"
printf 'k%.0s' $(seq 32) > "$work/state/lightning_ppo/key"  # the test signs with it too
cd "$work"
cat > named.yaml <<'Y'
objective: lightning_ppo.policy_objectives.KLPenalty
loss_terms:
  - {class_path: lightning_ppo.loss_terms.DualClip, init_args: {bound: 3.0}, weight: 0.5}
callbacks:
  - {class_path: lightning_ppo.recording.RecordVideo, init_args: {every_n_epochs: 1000}}
Y
echo 'callbacks: [lightning_ppo.callbacks.EnvStepsProgressBar]' > signed.yaml

run() {  # CLONE NAME ARGUMENTS
    PYTHONPATH=$1 python "$1/train.py" run_dir="before_rooms/$2" env.num_envs=2 rollout.num_steps=32 update.epochs=1 \
        update.minibatch_size=32 rollouts_per_epoch=1 evaluation.episodes=1 evaluation.final_episodes=1 \
        policy.hidden_sizes=[8] checkpoint.keep=1 checkpoint.save_best=false total_env_steps=128 "${@:3}"
}
quiet=trainer.enable_progress_bar=false
run "$first" plain $quiet
run "$first" named $quiet named.yaml
run "$first" lstm $quiet env.id=Pendulum-v1 policy.core=lstm policy.core_size=4
run "$first" overlap $quiet rollout.overlap=true
run "$last" signed signed.yaml
rm before_rooms/*/events*
for name in plain named lstm overlap signed; do
    [ $name = signed ] && clone=$last || clone=$first
    PYTHONPATH=$clone python -m lightning_ppo evaluate "before_rooms/$name/checkpoints/last.ckpt" --episodes 3 \
        > "before_rooms/$name/evaluated.json"
done
tar -cJf "$target" before_rooms
