"""The small network inside a variational measure, drawn from a generator."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from sfumato.information.checks import require_counts


def perceptron(inputs: int, hidden: int, outputs: int, *, generator: torch.Generator) -> nn.Sequential:
    """Two hidden layers of ReLU; weights normal with variance 2/fan_in (He et al. 2015), biases zero.

    Args:
        inputs: Width of a row.
        hidden: Units of each hidden layer.
        outputs: Width of the answer.
        generator: Draws the weights, on any device; the network is on the CPU, as modules are built there.

    Raises:
        InputError: A width below 1.
    """
    require_counts(inputs=inputs, hidden=hidden, outputs=outputs)
    widths = (inputs, hidden, hidden, outputs)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        # PyTorch's own constructor would draw from the global generator.
        linear = nn.Linear(fan_in, fan_out, device="meta").to_empty(device=generator.device)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).cpu()
