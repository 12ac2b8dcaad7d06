"""Objects of Python among settings: they arrive, files name them, and resuming asks for them."""

import dataclasses
import pickle
import threading

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import lightning_ppo
from lightning_ppo import PPO, RolloutDataModule
from lightning_ppo.run.arguments import as_config
from lightning_ppo.settings.loading import load
from lightning_ppo.support.env_specs import find_spec
from lightning_ppo.support.errors import ConfigError, EnvironmentFault
from tests.kit.training import make_trainer

SMALL = {
    "total_env_steps": 32,
    "rollouts_per_epoch": 1,
    "env.num_envs": 2,
    "rollout.num_steps": 8,
    "update": {"epochs": 1, "minibatch_size": 16},
    "evaluation.episodes": 0,
    "evaluation.final_episodes": 1,
    "compile": False,
}


@dataclasses.dataclass
class Market:
    """An argument that is a dataclass of the user's."""

    fee: float = 0.1


class Prices(gymnasium.Env):
    """Shows one price after the other; the reward is the price, less a fee."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, table, market=None, lock=None):
        assert isinstance(table, np.ndarray) and (market is None or isinstance(market, Market))
        self.table, self.fee, self.at = table, market.fee if market else 0.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return self.table[:1], {}

    def step(self, action):
        reward = float(self.table[self.at] - self.fee)
        self.at += 1
        return self.table[self.at : self.at + 1], reward, self.at == len(self.table) - 1, False, {}


def make_prices():
    return Prices(np.ones(5))


class Encoder(nn.Module):
    """A layer."""

    def __init__(self, space):
        super().__init__()
        self.num_features = 4
        self.layer = nn.Linear(1, 4)

    def forward(self, inputs):
        return self.layer(inputs)


@pytest.mark.parametrize(
    "how",
    [{}, {"env.backend": "async"}, {"rollout.overlap": True, "rollout.processes": 2}],
    ids=["sync", "async", "other processes"],
)
@pytest.mark.filterwarnings("ignore:checkpoints hold plain data only")
def test_objects_reach_the_environments_and_resuming_asks_for_them(how, tmp_path, capsys):
    given = {"table": np.full(5, 2.0), "market": Market(0.5)}
    run = {"run_dir": str(tmp_path / "run")}
    settings = SMALL | run | how | {"env.id": Prices, "env.kwargs": given, "policy": {"encoder": Encoder}}
    summary = lightning_ppo.train(settings)
    assert summary["eval_return_mean"] == pytest.approx(4 * 1.5)
    assert summary["env"]["kwargs"] == {"table": "<ndarray from Python>", "market": "<Market from Python>"}
    written = load([tmp_path / "run" / "config.yaml"])
    assert written.env.id == f"{__name__}:Prices" and written.policy.encoder == f"{__name__}.Encoder"
    assert written.env.kwargs == summary["env"]["kwargs"]
    torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)

    more = run | {"resume": "last", "total_env_steps": 64}
    with pytest.raises(ConfigError) as error:
        lightning_ppo.train(more)
    assert str(error.value) == (
        "env.kwargs.table: files hold no ndarray, which was given from Python; give it again, as "
        "lightning_ppo.train({..., 'env.kwargs.table': ...})"
    )
    capsys.readouterr()
    again = lightning_ppo.train(more | {"env.kwargs.table": given["table"], "env.kwargs.market": given["market"]})
    assert again["env_steps"] == 64 and again["eval_return_mean"] == summary["eval_return_mean"]
    assert "env.kwargs" not in capsys.readouterr().out  # they have not changed


def test_a_config_file_with_an_object_asks_for_it(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("env: {kwargs: {table: <DataFrame from Python>}}\nloss_terms: [<function from Python>]\n")
    with pytest.raises(ConfigError, match=r"^loss_terms: files hold no function, which was given from Python"):
        as_config(file)


@pytest.mark.filterwarnings("ignore:checkpoints hold plain data only")
def test_functions_and_classes_make_environments():
    for env in (make_prices, lambda: Prices(np.ones(5)), {"id": Prices, "kwargs": {"table": np.ones(5)}}):
        data = RolloutDataModule(env, num_envs=2, num_steps=8, rollouts_per_epoch=1)
        model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 16})
        make_trainer().fit(model, data)
        assert list(model.recent_returns) == [4.0] * 4
    with pytest.raises(ConfigError, match=r"^env: a single Prices has no copies; give its class, or what makes it$"):
        RolloutDataModule(make_prices())


def test_a_function_without_a_name_reaches_other_processes_and_files_have_its_path(tmp_path):
    data = RolloutDataModule(lambda: Prices(np.ones(5)), num_envs=2, num_steps=8, rollouts_per_epoch=1)
    sent = pickle.loads(cloudpickle.dumps(data.env_settings))
    assert find_spec(sent.id).entry_point().table.tolist() == [1.0] * 5
    model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 16})
    trainer = make_trainer()
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert saved["env"]["id"].startswith(f"{__name__}:test_a_function_without_a_name")
    with pytest.raises(EnvironmentFault, match="neither defines nor registers"):
        _ = RolloutDataModule(saved["env"]["id"]).env


@pytest.mark.filterwarnings("ignore:.*An exception occurred .cannot pickle:UserWarning")  # of Gymnasium's
def test_what_cannot_be_sent_to_another_process_is_one_line():
    data = RolloutDataModule(
        Prices, num_envs=2, num_steps=8, env_kwargs={"table": np.ones(5), "lock": threading.Lock()}, overlap=True
    )
    model = PPO(data.observation_space, data.action_space, update={"epochs": 1, "minibatch_size": 16})
    with (
        pytest.warns(UserWarning, match="plain data only"),
        pytest.raises(
            ConfigError, match=r"the environment's arguments cannot be sent to another process .*lock"
        ) as error,
    ):
        make_trainer().fit(model, data)
    assert "\n" not in str(error.value)


def test_objects_where_numbers_belong_are_refused():
    with pytest.raises(ConfigError, match=r"^env\.num_envs: expected plain data, got Market$"):
        as_config({"env.num_envs": Market()})
    config = as_config({"policy": {"hidden_sizes": (4, 4)}, "env": {"kwargs": {"sizes": (1, 2), "n": np.float32(0.5)}}})
    assert config.policy.hidden_sizes == [4, 4] and config.env.kwargs["sizes"] == [1, 2]
