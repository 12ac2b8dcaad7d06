"""Makes the agents of tests/interop/test_import_sb3.py; run with stable-baselines3 2.9.2 and torch 2.13.0."""

import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from images import OBSERVATIONS, Images, weights
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

HERE = Path(__file__).parent


def save(model: PPO, name: str, observations: np.ndarray, normalizer: VecNormalize | None) -> None:
    """Save an agent, and what it says of some observations."""
    full = HERE / "full.zip"
    model.save(full)
    with zipfile.ZipFile(full) as source:
        parts = {part: source.read(part) for part in ("data", "policy.pth", "_stable_baselines3_version")}
    # what describes classes, the machine and the optimizer's state is not read
    data = {k: v for k, v in json.loads(parts["data"]).items() if "ABCMeta" not in str(v)}
    parts["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(HERE / f"sb3_{name}.zip", "w", zipfile.ZIP_DEFLATED) as target:
        for part, content in parts.items():
            target.writestr(part, content)
    full.unlink()
    seen = observations if normalizer is None else normalizer.normalize_obs(observations)
    tensor = torch.as_tensor(seen, dtype=torch.float32)
    with torch.no_grad():
        values = model.policy.predict_values(tensor).squeeze(-1)
    expected = {
        "observations": observations.tolist(),
        "actions": model.predict(seen, deterministic=True)[0].tolist(),
        "values": values.tolist(),
    }
    (HERE / f"sb3_{name}.json").write_text(json.dumps(expected) + "\n")


rng = np.random.default_rng(0)

discrete = PPO(
    "MlpPolicy",
    make_vec_env("CartPole-v1", 2, seed=0),
    n_steps=64,
    batch_size=32,
    n_epochs=3,
    learning_rate=1e-3,
    clip_range=0.3,
    vf_coef=0.25,
    ent_coef=0.01,
    gamma=0.98,
    target_kl=0.05,
    policy_kwargs={"net_arch": [8, 6], "activation_fn": torch.nn.ReLU},
    seed=0,
    device="cpu",
)
discrete.learn(1024)
save(discrete, "cartpole", rng.normal(size=(20, 4)).astype(np.float32), None)

env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
continuous = PPO(
    "MlpPolicy", env, n_steps=64, policy_kwargs={"net_arch": [6], "log_std_init": -0.5}, seed=0, device="cpu"
)
continuous.learn(512)
observations = np.stack([*np.float32(rng.normal(size=(2, 20))), np.float32(rng.normal(size=20) * 4)], 1)
save(continuous, "pendulum", observations, env)
np.savez(
    HERE / "sb3_pendulum_vecnormalize.npz",
    obs_mean=env.obs_rms.mean,
    obs_var=env.obs_rms.var,
    obs_count=env.obs_rms.count,
    ret_mean=env.ret_rms.mean,
    ret_var=env.ret_rms.var,
    ret_count=env.ret_rms.count,
    clip_obs=env.clip_obs,
    clip_reward=env.clip_reward,
    epsilon=env.epsilon,
)


def describe_images(**policy_kwargs: object) -> dict:
    """Return settings and shapes of an agent that sees images, and what it says with weights by formula."""
    model = PPO("CnnPolicy", make_vec_env(Images, 2), n_steps=64, policy_kwargs=policy_kwargs, device="cpu")
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            parameter.copy_(torch.from_numpy(weights(name, list(parameter.shape))))
        pixels = torch.from_numpy(OBSERVATIONS).movedim(-1, 1)
        values = model.policy.predict_values(pixels).squeeze(-1)
    model.save(HERE / "full.zip")
    with zipfile.ZipFile(HERE / "full.zip") as source:
        data = json.loads(source.read("data"))
    (HERE / "full.zip").unlink()
    kwargs = {key: value for key, value in data["policy_kwargs"].items() if not key.startswith(":")}
    # the names of one parameter that the state dict holds several times stand for the first of them
    first = {parameter.data_ptr(): name for name, parameter in model.policy.named_parameters()}
    state = model.policy.state_dict()
    return {
        "data": {key: data[key] for key in ("n_envs", "n_steps", "n_epochs", "batch_size")} | {"policy_kwargs": kwargs},
        "parameters": {name: [first[tensor.data_ptr()], list(tensor.shape)] for name, tensor in state.items()},
        "actions": model.predict(OBSERVATIONS, deterministic=True)[0].tolist(),
        "values": values.tolist(),
    }


cases = {
    "shared": describe_images(),
    "shared_with_layers": describe_images(net_arch=[6], activation_fn=torch.nn.ReLU),
    "separate": describe_images(share_features_extractor=False),
}
(HERE / "sb3_images.json").write_text(json.dumps(cases) + "\n")
