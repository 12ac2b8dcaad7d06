"""How gradients are applied."""

import pytest
import torch

from tests.kit.training import make_pair, make_trainer


@pytest.mark.parametrize("plain", [False, True])
def test_gradients_below_the_bound_are_left_as_they_are(plain):
    def weights(bound: float | None) -> torch.Tensor:
        update = {"epochs": 1, "minibatch_size": 16, "max_grad_norm": bound}
        model, data = make_pair(update=update, plain=plain)
        make_trainer().fit(model, data)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    unbounded = weights(None)
    assert torch.equal(weights(1e9), unbounded)
    assert not torch.equal(weights(1e-3), unbounded)
