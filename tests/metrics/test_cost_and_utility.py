from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.data import ImageSet
from sfumato.defenses import Bottleneck, Dropout, chain
from sfumato.metrics import Cost, accuracy, latency, macs, parameters, split_cost
from sfumato.models import Feature, SplitModel, Stochastic, build, split


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(5, 7), (1, 5), 35),
        (nn.Linear(5, 7), (4, 5), 4 * 35),
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 6, 5), 8 * 6 * 5 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, bias=False), (2, 3, 7, 7), 2 * 8 * 3 * 3 * 3 * 9),
        (nn.Conv2d(4, 8, 1, groups=2), (1, 4, 3, 3), 8 * 9 * 2),
        (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), (1, 2, 4, 4), 16 * 2 * 3 * 9),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), (1, 3, 4, 4), 0),
        (nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2)), (1, 5), 49),
    ],
)
def test_macs_of_known_layers(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    found = macs(layer, torch.zeros(shape))
    assert found == expected
    assert isinstance(found, int)


def test_parameters_counts_frozen_ones_and_no_buffers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[0].weight.requires_grad_(False)
    assert parameters(model) == 3 * 4 + 4 + 2 * 4
    assert parameters(nn.Identity()) == 0


def defended(width: float = 0.1) -> SplitModel:
    whole = split(build("cnn", 5, (1, 16, 16), width=width, generator=seeded()), "block2", image_shape=(1, 16, 16))
    return chain(Bottleneck(3), Dropout(0.5)).bind(whole, generator=seeded()).defend(whole)


def test_split_cost_by_hand() -> None:
    """Widths 13, 26, 51, 102; images 16×16."""
    edge = 9 * (1 * 13 * 16**2 + 13 * 26 * 8**2 + 26 * 3 * 4**2)
    cloud = 9 * (3 * 26 * 4**2 + 26 * 51 * 4**2 + 51 * 102 * 2**2) + 102 * 25 + 25 * 5
    model = defended()
    assert split_cost(model) == Cost(
        edge_parameters=parameters(model.edge),
        edge_macs=edge,
        cloud_parameters=parameters(model.cloud),
        cloud_macs=cloud,
        payload_bytes=3 * 4 * 4 * 4,
    )
    assert parameters(model.edge) + parameters(model.cloud) == parameters(model)


def test_payload_is_in_the_features_own_format_and_channel_parameters_are_the_edges() -> None:
    class Shrink(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(7))

        def forward(self, z: Tensor) -> Tensor:
            return z[:, :10].half()

    class Widen(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.float()

    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 20))
    cloud = nn.Sequential(Widen(), nn.Linear(10, 2))
    cost = split_cost(SplitModel(flat, Shrink(), cloud, image_shape=(3, 2, 2), feature=Feature((20,)), cut="x"))
    assert cost.payload_bytes == 2 * 10
    assert cost.edge_parameters == 12 * 20 + 20 + 7
    assert (cost.edge_macs, cost.cloud_macs) == (240, 20)


def test_latency_runs_the_module_and_leaves_its_statistics() -> None:
    calls: list[bool] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.training or torch.is_grad_enabled())
            return x

    model = nn.Sequential(nn.BatchNorm2d(1), Spy())
    assert latency(model, torch.rand(2, 1, 4, 4, generator=seeded()), repeats=5) > 0
    assert calls == [False] * 8  # three to warm up, five measured, all in evaluation mode
    assert model[0].num_batches_tracked == 0


def image_set(labels: list[int], shape: tuple[int, int, int] = (1, 2, 2)) -> ImageSet:
    """Image i is of the gray value i."""
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, *shape).to(torch.uint8)
    return ImageSet(images.contiguous(), torch.tensor(labels), ("a", "b", "c"))


class Remember(nn.Module):
    """Answers the class that was written down for a gray value."""

    def __init__(self, answers: list[int]) -> None:
        super().__init__()
        self.answers = torch.tensor(answers)

    def forward(self, x: Tensor) -> Tensor:
        index = (x.mean((1, 2, 3)) * 255).round().long()
        return nn.functional.one_hot(self.answers[index % len(self.answers)], 3).float()


def remembering(answers: list[int], channel: nn.Module | None = None) -> SplitModel:
    channel = nn.Identity() if channel is None else channel
    feature = Feature((1, 2, 2))
    return SplitModel(nn.Identity(), channel, Remember(answers), image_shape=(1, 2, 2), feature=feature, cut="x")


@pytest.mark.parametrize(("answers", "expected"), [([0, 1, 2, 0], 1.0), ([0, 1, 1, 1], 0.5), ([2, 2, 0, 2], 0.0)])
def test_accuracy_counts(answers: list[int], expected: float) -> None:
    assert accuracy(remembering(answers), image_set([0, 1, 2, 0]), generator=seeded()) == expected


def test_accuracy_over_many_batches() -> None:
    """600 images are more than one batch; the last ones must be counted, and once."""
    images = ImageSet(
        torch.zeros(600, 1, 2, 2, dtype=torch.uint8), torch.zeros(600, dtype=torch.int64), ("a", "b", "c")
    )
    images.labels[[0, 511, 512, 599]] = 1
    assert accuracy(remembering([0]), images, generator=seeded()) == pytest.approx(596 / 600)


class Flip(Stochastic):
    """Turns half of the features into those of another image."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.where(self.uniform(z[:, :1, :1, :1]) < 0.5, 1 / 255, z)


def test_accuracy_goes_through_the_deployed_channel() -> None:
    images, answers = image_set([0] * 200), [0, 1] + [0] * 198

    def measured(seed: int) -> float:
        model = remembering(answers, Flip()).train()
        value = accuracy(model, images, generator=seeded(seed))
        assert not model.training
        return value

    assert 0.3 < measured(0) < 0.7
    assert measured(0) == measured(0)
    assert len({measured(seed) for seed in range(4)}) > 1
