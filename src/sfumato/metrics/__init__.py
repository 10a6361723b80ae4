"""How good a reconstruction is, what the model is good for, and what it costs."""

from sfumato.metrics.cost import Cost, latency, macs, parameters, split_cost
from sfumato.metrics.recognition import chance, recognized
from sfumato.metrics.reconstruction import Quality, quality
from sfumato.metrics.theory import theory
from sfumato.metrics.utility import accuracy

__all__ = [
    "Cost",
    "Quality",
    "accuracy",
    "chance",
    "latency",
    "macs",
    "parameters",
    "quality",
    "recognized",
    "split_cost",
    "theory",
]
