from __future__ import annotations

import pytest
import torch

from sfumato.defenses import Context, DistanceCorrelation
from sfumato.information import distance_correlation
from sfumato.models import Feature, SplitModel


def test_it_measures_image_against_what_is_sent() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 4, 4, generator=generator)
    clean, sent = torch.rand(8, 2, 2, 2, generator=generator), torch.rand(8, 2, 2, 2, generator=generator)
    sent.requires_grad_()
    ctx = Context(x, torch.arange(8), clean, sent, torch.zeros(8, 2), 0, 0, 0.1, generator)
    identity = torch.nn.Identity()
    split = SplitModel(identity, identity, identity, image_shape=(3, 4, 4), feature=Feature((2, 2, 2)), cut="x")
    before = generator.get_state()
    losses = DistanceCorrelation(2.5).bind(split, generator=generator).losses(ctx)
    assert list(losses) == ["distance_correlation"]
    value = losses["distance_correlation"]
    assert float(value.detach()) == pytest.approx(2.5 * float(distance_correlation(x, sent).detach()))
    assert float(value.detach()) != pytest.approx(2.5 * float(distance_correlation(x, clean)), rel=1e-3)
    value.backward()
    assert sent.grad.abs().sum() > 0
    assert torch.equal(generator.get_state(), before)


def test_a_feature_that_is_not_finite_shows_in_the_loss() -> None:
    """A loss of 0 would let training go on, and say that nothing leaks."""
    generator = torch.Generator().manual_seed(0)
    x, z = torch.rand(8, 3, 4, 4, generator=generator), torch.rand(8, 2, 2, 2, generator=generator)
    z[2, 0, 0, 0] = torch.nan
    ctx = Context(x, torch.arange(8), z, z, torch.zeros(8, 2), 0, 0, 0.1, generator)
    identity = torch.nn.Identity()
    split = SplitModel(identity, identity, identity, image_shape=(3, 4, 4), feature=Feature((2, 2, 2)), cut="x")
    loss = DistanceCorrelation(2.5).bind(split, generator=generator).losses(ctx)["distance_correlation"]
    assert loss.isnan()
