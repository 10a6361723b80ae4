"""VGG-11 and VGG-16 with batch normalization for small images (Simonyan & Zisserman 2015)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from sfumato.models.backbone import Backbone
from sfumato.models.layers import Dropout, scaled

# Channels of each convolution; True where a 2×2 max pool follows.
_VGG11 = (
    (64, True),
    (128, True),
    (256, False),
    (256, True),
    (512, False),
    (512, True),
    (512, False),
    (512, True),
)
_VGG16 = (
    *((64, False), (64, True), (128, False), (128, True)),
    *((256, False), (256, False), (256, True)),
    *((512, False), (512, False), (512, True)) * 2,
)


def vgg11(num_classes: int, image_shape: tuple[int, int, int], width: float = 1.0) -> Backbone:
    """VGG-11 as in the CEM paper (Xia et al. 2025): stages conv1 to conv8, then a 512-512-512-K classifier.

    The paper's cut is ``conv2``, after the second convolution block and its pool (128×8×8 for 32×32 images);
    its ablation cuts at ``conv1``, ``conv2`` and ``conv3``.
    """
    return _vgg(_VGG11, num_classes, image_shape, width, default_cut="conv2")


def vgg16(num_classes: int, image_shape: tuple[int, int, int], width: float = 1.0) -> Backbone:
    """VGG-16: stages conv1 to conv13 and the classifier of :func:`vgg11`; cut at ``conv4``, after the second pool."""
    return _vgg(_VGG16, num_classes, image_shape, width, default_cut="conv4")


def _vgg(
    plan: tuple[tuple[int, bool], ...],
    num_classes: int,
    image_shape: tuple[int, int, int],
    width: float,
    default_cut: str,
) -> Backbone:
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    channels = image_shape[0]
    for i, (full, pool) in enumerate(plan, start=1):
        out = scaled(full, width)
        layers = [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        stages[f"conv{i}"] = nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))
        channels = out
    stages["classifier"] = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),  # the identity for 32×32 images
        nn.Flatten(),
        Dropout(),
        nn.Linear(channels, channels),
        nn.ReLU(),
        Dropout(),
        nn.Linear(channels, channels),
        nn.ReLU(),
        nn.Linear(channels, num_classes),
    )
    return Backbone(stages, image_shape, default_cut)
