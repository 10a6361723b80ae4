"""How many elements of a feature carry anything at all."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.errors import InputError
from sfumato.information.checks import require_finite


@dataclass(frozen=True)
class EffectiveInformation:
    """Effective information mean of a set of features.

    Attributes:
        elements: Mean number of effective elements in an image's feature.
        fraction: The same divided by the number of elements, in [0, 1].
    """

    elements: float
    fraction: float


def effective_information(z: Tensor, *, threshold: float = 0.0) -> EffectiveInformation:
    r"""Mean number of elements with \|z\| above a threshold, per image (SiftFunnel, section 4).

    Meant for features that are zero where nothing is said, as after ReLU; a sigmoid has no zero, and noise leaves none:
    choose a threshold there, or measure before the channel.

    Args:
        z: (N, ...), one or more images.
        threshold: 0 or more; an element at the threshold does not count.

    Raises:
        InputError: No image, a negative threshold, or an element that is NaN or infinite.
    """
    if not threshold >= 0:
        raise InputError("threshold", threshold, "0 or more")
    if z.ndim == 0 or z.numel() == 0:
        raise InputError("shape of z", tuple(z.shape), "(N, ...) with one or more images and elements")
    require_finite(z=z)
    size = z.numel() // len(z)
    elements = int((z.abs() > threshold).sum()) / len(z)
    return EffectiveInformation(elements=elements, fraction=elements / size)
