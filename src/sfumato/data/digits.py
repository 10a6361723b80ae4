"""Scikit-learn's embedded handwritten digits: nothing to download, quick to learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sfumato.data.decode import Encoded
from sfumato.data.listing import Keep, Listing, Part


@dataclass(frozen=True)
class DigitsSource:
    """1,797 gray 8x8 digits (values 0 to 16 become 0 to 255) of ten classes, without a test part.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """

    name: str = "digits"

    def fingerprint(self) -> None:
        """Never cached: reading the embedded copy takes milliseconds."""

    def listing(self) -> Listing:
        """List all digits."""
        from sklearn.datasets import load_digits  # a second of imports that other sources need not pay

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)

        def encoded(keep: Keep) -> Iterator[Encoded]:
            return (Encoded(f"digits row {row}", pixels[row]) for row in np.flatnonzero(keep))

        return Listing(tuple("0123456789"), Part(digits.target.astype(np.int64), encoded))
