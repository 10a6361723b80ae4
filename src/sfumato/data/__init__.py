"""Images as uint8 tensors: where they come from, how they are divided, augmented and batched.

>>> splits = load("digits", seed=1)
>>> splits.train.image_shape, splits.train.num_classes
((1, 32, 32), 10)
"""

from sfumato.data.augment import Augment
from sfumato.data.batches import Batches
from sfumato.data.dataset import ImageSet, Splits
from sfumato.data.listing import RawSplits
from sfumato.data.loading import load
from sfumato.data.presets import PRESETS, Preset, find_preset, normalization
from sfumato.data.sources import load_source
from sfumato.data.splits import Fractions, make_splits

__all__ = [
    "PRESETS",
    "Augment",
    "Batches",
    "Fractions",
    "ImageSet",
    "Preset",
    "RawSplits",
    "Splits",
    "find_preset",
    "load",
    "load_source",
    "make_splits",
    "normalization",
]
