from __future__ import annotations

import pytest
import torch

from sfumato.errors import InputError
from sfumato.metrics import chance, recognized


def brightness(classes: int):
    """Answers with the nearest of ``classes`` levels of brightness, then the second nearest, and so on."""
    levels = torch.linspace(0, 1, classes)

    def classifier(x):
        return -(x.mean((1, 2, 3))[:, None] - levels).abs()

    return classifier


def of(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return (labels / (classes - 1))[:, None, None, None].expand(-1, 3, 4, 4)


def test_pictures_that_tell_their_class_are_all_recognized():
    labels = torch.arange(1200) % 5  # more than a batch
    assert recognized(brightness(5), of(labels, 5), labels) == 1.0
    assert recognized(brightness(5), of((labels + 2) % 5, 5), labels) == 0.0


def test_the_share_is_that_of_a_slow_twin():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(700, 3, 4, 4, generator=generator), torch.randint(0, 5, (700,), generator=generator)
    weights = torch.randn(48, 5, generator=generator)

    def classifier(x):
        return x.flatten(1) @ weights

    for top in (1, 2, 5):
        right = 0
        for image, label in zip(images, labels, strict=True):
            order = sorted(range(5), key=lambda k, image=image: -float(classifier(image[None])[0, k]))
            right += int(label) in order[:top]
        assert recognized(classifier, images, labels, top=top) == right / 700
    assert recognized(classifier, images, labels, top=5) == 1.0


def test_one_picture_for_all_gets_the_share_of_its_class_and_no_more_than_chance():
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    shares = [recognized(brightness(3), of(torch.full((10,), k), 3), labels) for k in range(3)]
    assert shares == [0.5, 0.3, 0.2]
    assert max(shares) == chance(labels)


def test_a_guess_among_the_first_two_counts_with_top_two():
    labels = torch.tensor([0, 1, 2, 3])
    near = of(labels, 4) * 0.999 + 0.001 * of(torch.tensor([1, 2, 3, 2]), 4)
    wrong = torch.tensor([1, 2, 3, 2])
    assert recognized(brightness(4), near, labels) == 1.0
    assert recognized(brightness(4), near, wrong) == 0.0
    assert recognized(brightness(4), near, wrong, top=2) == 1.0


@pytest.mark.parametrize(
    ("images", "labels", "top", "field"),
    [
        (torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64), 1, "labels"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, dtype=torch.int64), 1, "labels"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), 0, "top"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), 6, "top"),
    ],
)
def test_bad_input(images, labels, top, field):
    with pytest.raises(InputError) as caught:
        recognized(brightness(5), images, labels, top=top)
    assert caught.value.field == field
