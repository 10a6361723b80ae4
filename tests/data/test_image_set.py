from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.data import ImageSet
from sfumato.errors import InputError


def test_shape_and_number_of_classes(make_images: Any) -> None:
    images = make_images(6, 3, (1, 4, 5))
    assert (len(images), images.image_shape, images.num_classes) == (6, (1, 4, 5), 3)


def test_select_copies(make_images: Any) -> None:
    images = make_images(6)
    part = images.select(torch.tensor([4, 1]))
    assert torch.equal(part.images, images.images[[4, 1]])
    assert part.labels.tolist() == [0, 1]
    part.images.zero_()
    assert images.images[4].any()
    assert part.to("cpu").checksum() == part.checksum() != images.checksum()


@pytest.mark.parametrize(
    ("field", "images", "labels"),
    [
        ("x.images", torch.zeros(2, 3, 4, 4), torch.zeros(2).long()),
        ("x.images", torch.zeros(2, 2, 4, 4).byte(), torch.zeros(2).long()),
        ("x.images", torch.zeros(3, 4, 4).byte(), torch.zeros(3).long()),
        ("x.images", torch.zeros(0, 3, 4, 4).byte(), torch.zeros(0).long()),
        ("x.labels", torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2)),
        ("x.labels", torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long()),
        ("x.labels", torch.zeros(2, 3, 4, 4).byte(), torch.tensor([0, 2])),
        ("x.labels", torch.zeros(2, 3, 4, 4).byte(), torch.tensor([-1, 0])),
    ],
)
def test_what_is_no_image_set(field: str, images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(InputError) as error:
        ImageSet(images, labels, ("a", "b"), "x")
    assert error.value.field == field
