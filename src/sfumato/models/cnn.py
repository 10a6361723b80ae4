"""The four-block CNN of Yang et al. 2019 (CCS), the SiftFunnel paper's main model."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sfumato.models.backbone import Backbone
from sfumato.models.layers import Dropout, scaled


def cnn(num_classes: int, image_shape: tuple[int, int, int], width: float = 1.0) -> Backbone:
    """Four blocks (3×3 convolution, batch norm, 2×2 max pool, ReLU) of 128-256-512-1024 channels, two linear layers.

    The hidden layer has 5·K units, as in the original. The published cut is ``block2``: 299,520 edge parameters
    for colour images (SiftFunnel, table of edge sizes: 299.5 k).
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    channels, (_, height, breadth) = image_shape[0], image_shape
    for i, full in enumerate((128, 256, 512, 1024), start=1):
        out = scaled(full, width)
        stages[f"block{i}"] = nn.Sequential(
            nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.MaxPool2d(2), nn.ReLU()
        )
        channels, height, breadth = out, height // 2, breadth // 2
    hidden = 5 * num_classes
    stages["classifier"] = nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * breadth, hidden),
        Dropout(),
        nn.Linear(hidden, num_classes),
    )
    return Backbone(stages, image_shape, default_cut="block2")
