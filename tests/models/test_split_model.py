from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.models import Dropout, Feature, Normalize, SplitModel, build, output_shape, split

SHAPE = (3, 8, 8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Plus(nn.Module):
    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, x: Tensor) -> Tensor:
        return x + self.amount


def stages() -> nn.Sequential:
    return nn.Sequential(OrderedDict(first=nn.AvgPool2d(2), second=Plus(1.0), third=nn.Flatten(), fourth=nn.Flatten()))


def test_send_is_channel_of_edge_and_forward_is_cloud_of_that() -> None:
    model = SplitModel(Plus(1.0), nn.ReLU(), Plus(10.0), image_shape=SHAPE, feature=Feature(SHAPE), cut="here")
    x = torch.full((2, *SHAPE), -3.0)
    assert torch.equal(model.send(x), torch.zeros(2, *SHAPE))
    assert torch.equal(model(x), torch.full((2, *SHAPE), 10.0))
    assert (model.image_shape, model.cut) == (SHAPE, "here")


def test_halves_share_modules_and_keep_names() -> None:
    whole = stages()
    cut = split(whole, "second", image_shape=SHAPE)
    assert [name for name, _ in cut.edge.named_children()] == ["first", "second"]
    assert [name for name, _ in cut.cloud.named_children()] == ["third", "fourth"]
    assert cut.edge[1] is whole[1]
    assert cut.feature.shape == (3, 4, 4)
    assert isinstance(cut.channel, nn.Identity)


@pytest.mark.parametrize("at", ["fourth", "fith", ""])
def test_unknown_cut_lists_stages(at: str) -> None:
    with pytest.raises(InputError, match=r"^cut: got .*one of first, second, third") as caught:
        split(stages(), at, image_shape=SHAPE)
    assert "fourth" not in caught.value.accepted  # nothing would be left for the cloud
    assert ("did you mean first?" in str(caught.value)) == (at == "fith")


def test_module_used_twice_stays_in_both_places() -> None:
    plus = Plus(1.0)
    whole = nn.Sequential(plus, nn.Flatten(), plus, plus)
    x = torch.zeros(1, *SHAPE)
    assert float(whole(x).mean()) == 3.0
    for at in ("0", "1", "2"):
        assert torch.equal(split(whole, at, image_shape=SHAPE)(x), whole(x))


def test_nested_names_are_no_stages() -> None:
    whole = nn.Sequential(OrderedDict(a=nn.Sequential(OrderedDict(b=Plus(1.0))), c=Plus(2.0)))
    with pytest.raises(InputError, match=r"one of a$"):
        split(whole, "a.b", image_shape=SHAPE)


def test_normalization_travels_with_the_edge() -> None:
    whole = stages()
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    cut = split(whole, "first", image_shape=SHAPE, normalization=(mean, std))
    x = torch.rand(2, *SHAPE, generator=seeded())
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(cut.edge(x), whole[0](by_hand))
    torch.testing.assert_close(cut(x), whole(by_hand))
    assert "edge.normalize.mean" in cut.state_dict()


def test_network_with_normalization_of_its_own_gets_no_second() -> None:
    whole = nn.Sequential(OrderedDict(normalize=Normalize((0.5,), (0.5,)), rest=nn.Flatten()))
    assert split(whole, "normalize", image_shape=(1, 4, 4)).feature.shape == (1, 4, 4)
    with pytest.raises(InputError, match=r"normalization: .*a stage normalize of its own"):
        split(whole, "normalize", image_shape=(1, 4, 4), normalization=((0.5,), (0.5,)))


def test_with_parts_replaces_only_what_it_is_given() -> None:
    cut = split(stages(), "first", image_shape=SHAPE)
    channel, cloud = Plus(5.0), Plus(7.0)
    changed = cut.with_parts(channel=channel, cloud=cloud, noise_variance=0.25)
    assert (changed.edge, changed.channel, changed.cloud) == (cut.edge, channel, cloud)
    assert changed.feature == Feature((3, 4, 4), None, 0.25)
    narrowed = changed.with_parts(edge=nn.Sequential(nn.AvgPool2d(4), nn.Sigmoid()), bounds=(0.0, 1.0))
    assert narrowed.feature == Feature((3, 2, 2), (0.0, 1.0), 0.25)
    assert (narrowed.channel, narrowed.cloud) == (channel, cloud)
    assert narrowed.with_parts(cloud=Plus(1.0)).feature == narrowed.feature
    # A new edge has the bounds that are said of it, and none of the old.
    assert narrowed.with_parts(edge=Plus(0.0)).feature == Feature(SHAPE, None, 0.25)
    assert (narrowed.image_shape, narrowed.cut) == (cut.image_shape, cut.cut)
    assert cut.feature == Feature((3, 4, 4))  # the old one is as it was


def test_output_shape_leaves_the_module_alone() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Dropout(), nn.Flatten(), nn.Linear(4 * 36, 5))
    module.train()
    module[1].eval()  # a frozen batch norm inside a model in training
    modes = [layer.training for layer in module.modules()]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert output_shape(module, SHAPE) == (5,)  # the dropout has no generator: it must not draw
    assert [layer.training for layer in module.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert output_shape(module.double(), SHAPE) == (5,)


def test_output_shape_restores_modes_after_an_error() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()).train()
    with pytest.raises(RuntimeError):
        output_shape(module, SHAPE)
    assert all(layer.training for layer in module.modules())


def test_split_state_round_trip() -> None:
    model = split(build("cnn", 3, (1, 16, 16), width=0.05, generator=seeded(1)), "block2", image_shape=(1, 16, 16))
    other = split(build("cnn", 3, (1, 16, 16), width=0.05, generator=seeded(2)), "block2", image_shape=(1, 16, 16))
    x = torch.rand(2, 1, 16, 16, generator=seeded(3))
    assert not torch.equal(model.eval()(x), other.eval()(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))
