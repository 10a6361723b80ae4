"""ResNets for small images: ResNet-20 (He et al. 2016, section 4.2) and the CIFAR form of ResNet-18."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from sfumato.models.backbone import Backbone
from sfumato.models.layers import scaled


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut (1×1 convolution where the shape changes)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, out, H/stride, W/stride)."""
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


def resnet20(num_classes: int, image_shape: tuple[int, int, int], width: float = 1.0) -> Backbone:
    """ResNet-20: stages stem, layer1.1 to layer3.3 (written ``layer1_1``), head; 16-32-64 channels.

    The CEM paper cuts "after the first four convolutional layers", which falls inside a residual block, where two
    tensors would have to travel. The default cut here is ``layer1_1``, the last whole block before it: three
    convolutions and 13 % of the work, to the paper's "approximately 10 %"; the bottleneck's is the fourth.
    """
    return _resnet((16, 32, 64), 3, num_classes, image_shape, width, default_cut="layer1_1")


def resnet18(num_classes: int, image_shape: tuple[int, int, int], width: float = 1.0) -> Backbone:
    """ResNet-18 for small images: 3×3 stem without pooling; 64-128-256-512 channels, two blocks each.

    SiftFunnel (section VI) protects the first three convolutions: the stem and one block, ``layer1_1``.
    """
    return _resnet((64, 128, 256, 512), 2, num_classes, image_shape, width, default_cut="layer1_1")


def _resnet(
    plan: tuple[int, ...],
    blocks: int,
    num_classes: int,
    image_shape: tuple[int, int, int],
    width: float,
    default_cut: str,
) -> Backbone:
    channels = scaled(plan[0], width)
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    stem = (nn.Conv2d(image_shape[0], channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    stages["stem"] = nn.Sequential(*stem)
    for i, full in enumerate(plan, start=1):
        out = scaled(full, width)
        for j in range(1, blocks + 1):
            stages[f"layer{i}_{j}"] = BasicBlock(channels, out, stride=2 if i > 1 and j == 1 else 1)
            channels = out
    stages["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    return Backbone(stages, image_shape, default_cut)
