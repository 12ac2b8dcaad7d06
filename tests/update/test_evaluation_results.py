"""What is logged of an evaluation."""

import pytest
import torch

from lightning_ppo.rollout.shapes import Episodes
from lightning_ppo.update.evaluation_results import EvaluationResults


class Log:
    """Stands for a module; keeps what it is given to log."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def log_dict(self, metrics, **_) -> None:
        self.logged.append({name: float(value) for name, value in metrics.items()})


def test_each_evaluation_is_logged_with_the_deviation_of_all_its_episodes():
    results, log = EvaluationResults(), Log()
    results.add(Episodes(torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([10, 20])))
    results.add(Episodes(torch.tensor([5.0], dtype=torch.float64), torch.tensor([60])))
    results.log(log, "eval", 640)
    results.add(Episodes(torch.tensor([7.0], dtype=torch.float64), torch.tensor([3])))
    results.log(log, "test", 640)
    # mean (1 + 3 + 5) / 3 = 3, variance (4 + 0 + 4) / 3
    first = {"return_mean": 3.0, "return_std": (8.0 / 3.0) ** 0.5, "length_mean": 30.0, "episodes": 3.0}
    second = {"return_mean": 7.0, "return_std": 0.0, "length_mean": 3.0, "episodes": 1.0}
    for logged, (prefix, expected) in zip(log.logged, [("eval", first), ("test", second)], strict=True):
        assert logged == pytest.approx({f"{prefix}/{name}": value for name, value in expected.items()} | {"step": 640})
