"""One rollout collected in several processes: every group as if it were alone, side by side, and strictly on-policy."""

import copy
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from lightning_ppo import RolloutDataModule
from lightning_ppo.cli import train
from lightning_ppo.collection import groups, processes
from lightning_ppo.collection.groups import make_groups
from lightning_ppo.collection.processes import make_collector
from lightning_ppo.collection.stream import RolloutStream
from lightning_ppo.policy.scoring import evaluate_rollout
from lightning_ppo.settings.algorithm import RolloutConfig
from lightning_ppo.settings.environment import EnvConfig
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from lightning_ppo.support.packing import unpack
from lightning_ppo.support.tree import tree_leaves
from tests.kit.collecting import Snapshots, build
from tests.kit.commands import SMALL
from tests.kit.envs import Count, make_vector_env
from tests.kit.paths import ROOT
from tests.kit.rich_envs import Forbidden
from tests.kit.spaces import agent_of
from tests.kit.training import Recording, make_trainer

SIZES = 3, 2


class Hangs(Count):
    """Writes down its process and sleeps for ever in its third step."""

    def step(self, action):
        if self.t == 2:
            Path(os.environ["HANGS"], f"hangs.{os.getpid()}").touch()
            time.sleep(1000.0)
        return super().step(action)


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    assert multiprocessing.active_children() == []


def fields_of(rollout):
    names = ("observations", "actions", "distribution", "log_probs", "values", "next_values", "rewards")
    names += ("terminations", "truncations", "valid", "action_masks", "starts", "states")
    found = {name: tree_leaves(getattr(rollout, name)) for name in names if getattr(rollout, name) is not None}
    return {f"{name} {number}": leaf for name, leaves in found.items() for number, leaf in enumerate(leaves)}


def boundaries_of(rollout):
    """Return what belongs to each boundary row, by step and environment."""
    columns = [*tree_leaves(rollout.boundary_observations)]
    columns += [] if rollout.boundary_states is None else [rollout.boundary_states]
    rows = [divmod(row, rollout.num_envs) for row in rollout.boundary_rows.tolist()]
    assert len(set(rows)) == len(rows)
    return {row: [column[i].tolist() for column in columns] for i, row in enumerate(rows)}


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("env_id", "core", "mask"),
    [
        ("Pendulum-v1", None, "auto"),
        pytest.param("CartPole-v1", "lstm", "auto", marks=pytest.mark.representative),
        ("tests.kit.rich_envs:Forbidden", None, "auto"),
        ("tests.kit.rich_envs:Weigh", "gru", "auto"),
        ("tests.kit.rich_envs:Weigh", "transformer", "auto"),
    ],
    ids=["pendulum", "lstm", "masks", "dict gru", "dict transformer"],
)
def test_each_group_is_as_if_it_were_alone(env_id, core, mask):
    settings = EnvConfig(id=env_id, action_mask=mask, backend="sync", stagger=False)
    env = make_vector_env(env_id, 1, backend="sync")
    spaces = env.single_observation_space, env.single_action_space
    env.close()
    policy = agent_of(*spaces, "gaussian", core=core, core_size=4).float()

    def makes(policy):
        seeds = [[11, 12, 13], [14, 15]]
        return [
            partial(make_collector, replace(settings, num_envs=size), policy, 40, g, own)
            for g, (size, own) in enumerate(zip(SIZES, seeds, strict=True))
        ]

    grouped = make_groups(makes(policy), sum(SIZES))
    apart = copy.deepcopy(policy)
    alone = [make() for make in makes(apart)]
    try:
        for iteration in range(3):
            rollout = grouped.collect()
            firsts = [0, SIZES[0]]
            parts = [collector.collect() for collector in alone]
            assert (rollout.num_envs, rollout.policy_version) == (5, iteration)
            together, boundaries = fields_of(rollout), {}
            for first, part in zip(firsts, parts, strict=True):
                for name, values in fields_of(part).items():
                    assert torch.equal(together[name][:, first : first + part.num_envs], values), name
                boundaries |= {(t, first + n): x for (t, n), x in boundaries_of(part).items()}
            assert boundaries_of(rollout) == boundaries
            assert rollout.episodes.returns.tolist() == [x for part in parts for x in part.episodes.returns.tolist()]
            for agent in (policy, apart):  # an update that the other process must be told of
                agent.version += 1
                with torch.no_grad():
                    for parameter in agent.parameters():
                        parameter.mul_(1.1)
    finally:
        for collector in (grouped, *alone):
            collector.close()


def test_groups_are_one_collector_that_draws_their_noise():
    settings = EnvConfig("Pendulum-v1", sum(SIZES), backend="sync", max_episode_steps=25, stagger=False)
    env = make_vector_env("Pendulum-v1", 1)
    policies = [agent_of(env.single_observation_space, env.single_action_space, "gaussian").float() for _ in range(2)]
    env.close()
    seeds, rollout_settings = [11, 12, 13, 14, 15], RolloutConfig(num_steps=40)
    firsts = [sum(SIZES[:group]) for group in range(len(SIZES))]
    makes = [
        partial(make_collector, replace(settings, num_envs=size), policies[0], 40, group, seeds[first:][:size])
        for group, (size, first) in enumerate(zip(SIZES, firsts, strict=True))
    ]
    whole = make_collector(settings, policies[1], 40, 0, seeds)
    head, generators = policies[1].head, [torch.Generator().manual_seed(group) for group in range(len(SIZES))]
    draw = head.noise
    head.noise = lambda shape, _: torch.cat([draw((40, n), g) for n, g in zip(SIZES, generators, strict=True)], 1)
    grouped = make_groups(makes, sum(SIZES))
    streams = [RolloutStream(collector, rollout_settings, 1) for collector in (grouped, whole)]
    try:
        for _ in range(4):
            rollouts = [stream.next_rollout() for stream in streams]
            for name in ("observations", "actions", "log_probs", "values", "next_values", "advantages", "returns"):
                torch.testing.assert_close(*(getattr(rollout, name) for rollout in rollouts), rtol=1e-4, atol=1e-4)
            assert rollouts[0].truncations.any()
            assert torch.equal(rollouts[0].truncations, rollouts[1].truncations)
            for policy, rollout in zip(policies, rollouts, strict=True):
                policy.update_statistics(rollout, lambda x: x)
                policy.version += 1
    finally:
        for collector in (grouped, whole):
            collector.close()


@pytest.mark.ranks
def test_every_rollout_is_of_the_policy_that_learns_from_it():
    model, data = build("Pendulum-v1", Recording, overlap=False, processes=2)
    seen = Snapshots()
    make_trainer(max_epochs=2, limit_val_batches=1.0, callbacks=[seen]).fit(model, data)
    assert seen.lags == [0.0] * 4
    for policy, rollout in zip(seen.policies, model.rollouts, strict=False):
        now, _ = evaluate_rollout(policy, rollout)
        torch.testing.assert_close(now.log_probs, rollout.log_probs, atol=1e-5, rtol=1e-5)
    # the environments are those of one process, and every one is acted for with noise of its own
    alone, data = build("Pendulum-v1", Recording, overlap=False)
    make_trainer(limit_val_batches=1.0).fit(alone, data)
    assert torch.equal(alone.rollouts[0].observations[0], model.rollouts[0].observations[0])
    assert len({tuple(x) for x in model.rollouts[0].actions[0].tolist()}) == 4


@pytest.mark.ranks
def test_another_number_of_processes_is_said_on_resuming(tmp_path):
    arguments = [*SMALL, "total_env_steps=128", f"run_dir={tmp_path}", "evaluation.final_episodes=0"]
    assert train.main([*arguments, "rollout.processes=2"]) == 0
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    groups = unpack(saved["RolloutDataModule"]["ranks"][0])["collector"]["groups"]
    assert [len(group["stepper"]["ended"]) for group in groups] == [2, 2]
    with pytest.warns(UserWarning, match=r"in 2 processes \(rollout.processes\), this run in 1: .* seeded anew"):
        assert train.main([f"run_dir={tmp_path}", "resume=last", "total_env_steps=256", "rollout.processes=1"]) == 0


def test_processes_that_were_started_end_if_another_cannot_be(monkeypatch):
    started, killed = [], []

    class Remote:
        def __init__(self, make, policy, precision, threads):
            if started:
                raise ConfigError("no second one")
            started.append(self)

        def kill(self):
            killed.append(self)

    monkeypatch.setattr(groups, "RemoteCollector", Remote)
    settings, rollout = EnvConfig("Pendulum-v1", 3, backend="sync"), RolloutConfig(8, processes=3)
    env = make_vector_env("Pendulum-v1", 1)
    policy = agent_of(env.single_observation_space, env.single_action_space, "gaussian").float()
    shares = processes.shares_of(3, 3, seed=1, rank=0)
    assert [share.num_envs for share in shares] == [1, 1, 1]
    assert len({seed for share in shares for seed in (share.noise_seed, *share.seeds)}) == 6
    with pytest.raises(ConfigError, match="no second one"):
        processes.start_collecting(env, policy, settings, rollout, shares, torch.device("cpu"), nullcontext, False)
    assert len(started) == 1 and killed == started


@pytest.mark.ranks
def test_a_fault_of_one_group_waits_for_the_others():
    settings = EnvConfig("tests.kit.rich_envs:Forbidden", 1, backend="sync", stagger=False)
    kwargs = [{}, {"blocked_at": 3}]
    env = Forbidden()
    policy = agent_of(env.observation_space, env.action_space, "gaussian").float()
    makes = [partial(make_collector, replace(settings, kwargs=k), policy, 8, 0, [1]) for k in kwargs]
    for number, order in enumerate((makes, makes[::-1])):
        grouped = make_groups(order, 2)
        try:
            with pytest.raises(EnvironmentFault, match=f"process {2 - number} of 2 .*: env 0 masks every choice"):
                grouped.collect()
            assert all(other._found is not None for other in grouped.others)
            # what went on in the other group was not learnt from
            assert [group["stepper"]["env"] for group in grouped.state_dict()["groups"]] == [None, None]
        finally:
            grouped.close()


def test_more_processes_than_environments():
    for env, num_envs in (("CartPole-v1", 2), ({"id": "CartPole-v1", "num_envs": 2}, None)):
        with pytest.raises(ConfigError, match=r"rollout\.processes: 3 processes cannot share 2 environments"):
            RolloutDataModule(env, num_envs=num_envs, processes=3)


@pytest.mark.ranks
@pytest.mark.parametrize("ways", [("false", "true"), ("true", "false")], ids=["on", "off"])
def test_overlap_may_be_changed_on_resuming(ways, tmp_path):
    arguments = [
        *SMALL,
        "env.id=Pendulum-v1",
        "total_env_steps=128",
        f"run_dir={tmp_path}",
        "evaluation.final_episodes=0",
    ]
    assert train.main([*arguments, f"rollout.overlap={ways[0]}"]) == 0
    again = [f"run_dir={tmp_path}", "resume=last", "total_env_steps=256", f"rollout.overlap={ways[1]}"]
    with pytest.warns(UserWarning, match="collected ahead") if ways[1] == "false" else nullcontext():
        assert train.main(again) == 0


@pytest.mark.ranks
def test_nobody_outlives_the_trainer(tmp_path):
    """Killed while environments hang in a process that it started, and in one that this one started."""
    arguments = [
        "env.id=tests.collection.test_groups:Hangs",
        "env.num_envs=2",
        "rollout.num_steps=8",
        "update.minibatch_size=16",
    ]
    arguments += ["evaluation.episodes=0", "rollout.processes=2", "rollout.overlap=true", f"run_dir={tmp_path / 'run'}"]
    code = f"from lightning_ppo.cli import train; train.main({arguments})"
    script = tmp_path / "script.py"
    script.write_text(f"if __name__ == '__main__':\n    {code}\n")
    paths = {"PYTHONPATH": str(ROOT), "HANGS": str(tmp_path)}
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, **paths}, cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(pids := [int(path.suffix[1:]) for path in tmp_path.glob("hangs.*")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
