"""What a run that goes on may change."""

import pytest

from lightning_ppo.run.arguments import _check_resumable
from lightning_ppo.settings.loading import load
from lightning_ppo.support.errors import ConfigError


@pytest.mark.parametrize(
    "override", ["policy.hidden_sizes=[8]", "policy.activation=relu", "env.id=Pendulum-v1", "normalize.rewards=false"]
)
def test_another_network_or_task_is_refused_by_name(override):
    with pytest.raises(ConfigError, match=rf"^{override.partition('=')[0]}: the run to resume has"):
        _check_resumable(load(), load([], [override]))


def test_what_changes_is_printed(capsys):
    _check_resumable(load(), load([], ["total_env_steps=9999999", "run_dir=here"]))
    assert capsys.readouterr().out == "resume: total_env_steps changes from 1000000 to 9999999\n"
