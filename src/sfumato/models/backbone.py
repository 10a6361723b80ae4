"""A backbone: a classifier as named stages, so that it can be cut at any of them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from sfumato.errors import InputError, one_of
from sfumato.models.layers import Dropout, initialize, spare_global_generator


class Backbone(nn.Sequential):
    """Named stages in order; images (N, C, H, W) in [0, 1] to logits (N, K).

    Args:
        stages: Stage name to module.
        image_shape: (C, H, W) it was built for.
        default_cut: Stage after which the papers cut it.
    """

    def __init__(
        self, stages: OrderedDict[str, nn.Module], image_shape: tuple[int, int, int], default_cut: str
    ) -> None:
        super().__init__(stages)
        self.image_shape = image_shape
        self.default_cut = default_cut


Builder = Callable[[int, tuple[int, int, int], float], Backbone]


@dataclass(frozen=True)
class BackboneInfo:
    """A registered backbone: how to build it and where it comes from."""

    build: Builder
    summary: str
    source: str
    minimum_size: int


def build(
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    *,
    width: float = 1.0,
    dropout: float | None = None,
    generator: torch.Generator,
) -> Backbone:
    """A freshly initialized backbone.

    Args:
        name: One of :data:`BACKBONES`.
        num_classes: K.
        image_shape: (C, H, W).
        width: Multiplies all channel numbers; 1 is the published network, less is for small machines.
        dropout: Rate of the classifier's dropout layers, where it has any; by default the published one (0.5). A
            narrow network on few images learns little under that.
        generator: Source of the initial weights.

    Raises:
        InputError: Unknown name, an image too small for the network, width not positive.
    """
    from sfumato.models import BACKBONES  # the registry imports the builders, which import this file

    if name not in BACKBONES:
        raise InputError("model.backbone", name, one_of(BACKBONES, name))
    if not 0 < width < math.inf:
        raise InputError("model.width", width, "a number above 0 (1 is the published network)")
    if dropout is not None and not 0 <= dropout < 1:
        raise InputError("model.dropout", dropout, "a rate from 0 to below 1")
    info = BACKBONES[name]
    if min(image_shape[1:]) < info.minimum_size:
        raise InputError("image_shape", image_shape[1:], f"at least {info.minimum_size}×{info.minimum_size} for {name}")
    with spare_global_generator():
        model = info.build(num_classes, image_shape, width)
    for layer in model.modules():
        if isinstance(layer, Dropout) and dropout is not None:
            layer.p = dropout
    initialize(model, generator)
    return model
