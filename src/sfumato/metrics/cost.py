"""What the two halves cost: parameters, multiply–accumulates, bytes on the wire, milliseconds."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato.models import SplitModel, set_generator


@dataclass(frozen=True)
class Cost:
    """Costs for one image.

    Attributes:
        edge_parameters: Trainable and frozen parameters; buffers are not counted.
        edge_macs: Multiply–accumulates of convolutions and linear layers.
        cloud_parameters: As for the edge.
        cloud_macs: As for the edge.
        payload_bytes: Size of the feature that is sent, in its own number format.
    """

    edge_parameters: int
    edge_macs: int
    cloud_parameters: int
    cloud_macs: int
    payload_bytes: int


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def macs(module: nn.Module, x: Tensor) -> int:
    """Multiply–accumulates of convolutions, linear layers and attention products for the input ``x``.

    Half of what PyTorch's own counter reports as floating point operations. The CEM paper's figures (21.9 M for the
    edge of VGG-11 with bottleneck, 133.59 M for the rest) also count biases, batch norm, activations and pooling;
    the multiplications of the same layers are 21.2 M and 133.2 M.
    """
    module.eval()
    with FlopCounterMode(display=False) as counter:
        module(x)
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def split_cost(split: SplitModel) -> Cost:
    """Costs of both halves for one image. Leaves the split in evaluation mode, drawing from a generator of its own."""
    split.eval()
    device = next(split.parameters()).device
    set_generator(split, torch.Generator().manual_seed(0))
    image = torch.zeros(1, *split.image_shape, device=device)
    z = split.send(image)
    return Cost(
        edge_parameters=parameters(split.edge) + parameters(split.channel),
        edge_macs=macs(split.edge, image),
        cloud_parameters=parameters(split.cloud),
        cloud_macs=macs(split.cloud, z),
        payload_bytes=z.numel() * z.element_size(),
    )


@torch.no_grad()
def latency(module: nn.Module, x: Tensor, *, repeats: int = 30) -> float:
    """Median milliseconds of one forward pass in evaluation mode, after a warm-up; waits for the device."""
    module.eval()

    def once() -> float:
        start = time.perf_counter()
        module(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        return 1000 * (time.perf_counter() - start)

    for _ in range(3):
        once()
    return statistics.median(once() for _ in range(repeats))
