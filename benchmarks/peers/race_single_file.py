"""A PPO loop in one file, in the manner of CleanRL: torch.distributions, tensors filled step by step, eager updates.

Written for this benchmark, with the number of updates and the network shapes of the other racers.
"""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stopwatch import Race, Stopwatch, read_race
from torch import nn
from torch.distributions import Categorical, Normal

GAMMA, GAE_LAMBDA, CLIP, VALUE_COEFFICIENT, MAX_GRAD_NORM = 0.99, 0.95, 0.2, 0.5, 0.5


def make_env(race: Race) -> gymnasium.Env:
    """Return one environment with the usual wrappers."""
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(race.env_id))
    if race.normalize:
        env = gymnasium.wrappers.ClipAction(env)
        env = gymnasium.wrappers.NormalizeObservation(env)
        env = gymnasium.wrappers.NormalizeReward(env, gamma=GAMMA)
    return env


def linear(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    """Return an orthogonally initialised layer."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """Two separate 64x64 tanh networks."""

    def __init__(self, inputs: int, actions: int, discrete: bool) -> None:
        super().__init__()
        self.critic = nn.Sequential(linear(inputs, 64), nn.Tanh(), linear(64, 64), nn.Tanh(), linear(64, 1, 1.0))
        self.actor = nn.Sequential(linear(inputs, 64), nn.Tanh(), linear(64, 64), nn.Tanh(), linear(64, actions, 0.01))
        self.log_std = None if discrete else nn.Parameter(torch.zeros(1, actions))

    def forward(self, x: torch.Tensor, action: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Return actions, their log-probabilities, the entropy and values."""
        output = self.actor(x)
        if self.log_std is None:
            distribution = Categorical(logits=output)
            action = distribution.sample() if action is None else action
            return action, distribution.log_prob(action), distribution.entropy(), self.critic(x)
        normal = Normal(output, self.log_std.expand_as(output).exp())
        action = normal.sample() if action is None else action
        return action, normal.log_prob(action).sum(1), normal.entropy().sum(1), self.critic(x)


def main() -> None:
    """Train and report."""
    race = read_race()
    stopwatch = Stopwatch(race.env_steps_per_iteration)
    torch.set_num_threads(1)
    torch.manual_seed(race.seed)
    np.random.seed(race.seed)
    copies = [lambda: make_env(race)] * race.num_envs
    envs = SyncVectorEnv(copies, autoreset_mode=AutoresetMode.SAME_STEP)
    space = envs.single_action_space
    discrete = isinstance(space, Discrete)
    inputs = int(np.prod(envs.single_observation_space.shape))
    agent = Agent(inputs, int(space.n) if discrete else int(np.prod(space.shape)), discrete)
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-4, eps=1e-5)
    shape = (race.num_steps, race.num_envs)
    observations = torch.zeros(*shape, inputs)
    actions = torch.zeros(*shape, *space.shape, dtype=torch.int64 if discrete else torch.float32)
    log_probs, rewards, dones, values = (torch.zeros(shape) for _ in range(4))
    next_observation = torch.tensor(envs.reset(seed=race.seed)[0], dtype=torch.float32)
    next_done = torch.zeros(race.num_envs)
    returned = []
    for _ in range(race.iterations):
        for step in range(race.num_steps):
            observations[step], dones[step] = next_observation, next_done
            with torch.no_grad():
                action, log_prob, _, value = agent(next_observation)
            actions[step], log_probs[step], values[step] = action, log_prob, value.flatten()
            observation, reward, terminations, truncations, infos = envs.step(action.numpy())
            rewards[step] = torch.tensor(reward)
            next_observation = torch.tensor(observation, dtype=torch.float32)
            next_done = torch.tensor(terminations | truncations, dtype=torch.float32)
            if "final_info" in infos:
                returned += [infos["final_info"]["episode"]["r"]]
        with torch.no_grad():
            next_value = agent(next_observation)[3].flatten()
            advantages = torch.zeros(shape)
            last = torch.zeros(race.num_envs)
            for t in reversed(range(race.num_steps)):
                alive = 1.0 - (next_done if t == race.num_steps - 1 else dones[t + 1])
                following = next_value if t == race.num_steps - 1 else values[t + 1]
                delta = rewards[t] + GAMMA * following * alive - values[t]
                advantages[t] = last = delta + GAMMA * GAE_LAMBDA * alive * last
            returns = advantages + values
        flat = [x.flatten(0, 1) for x in (observations, actions, log_probs, advantages, returns)]
        rows = np.arange(race.num_steps * race.num_envs)
        clipped = []
        for _ in range(race.epochs):
            np.random.shuffle(rows)
            for start in range(0, len(rows), race.minibatch_size):
                x, action, old, advantage, target = (f[rows[start : start + race.minibatch_size]] for f in flat)
                _, log_prob, entropy, value = agent(x, action)
                log_ratio = log_prob - old
                ratio = log_ratio.exp()
                with torch.no_grad():
                    kl = (ratio - 1 - log_ratio).mean()
                    clipped.append(((ratio - 1.0).abs() > CLIP).float().mean().item())
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                surrogate = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                value_loss = 0.5 * (value.flatten() - target).square().mean()
                loss = surrogate + VALUE_COEFFICIENT * value_loss - 0.0 * entropy.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
                optimizer.step()
        stopwatch.lap()
        # what such a script writes to TensorBoard
        print(kl.item(), np.mean(clipped), surrogate.item(), value_loss.item(), len(returned))
    stopwatch.report("torch", "gymnasium", "numpy")


if __name__ == "__main__":
    main()
