"""From a name to train, validation, test and auxiliary images."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from sfumato.data.dataset import Splits
from sfumato.data.decode import Channels
from sfumato.data.presets import PRESETS
from sfumato.data.sources import load_source
from sfumato.data.splits import Fractions, make_splits
from sfumato.errors import InputError
from sfumato.progress import Progress


def load(
    source: str = "digits",
    *,
    path: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: Channels | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    train_splits: Collection[str] | None = None,
    test_splits: Collection[str] | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    top_classes: int | None = None,
    validation: float | None = None,
    auxiliary: float | None = None,
    test: float | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
    cache: bool = True,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Splits:
    """Load a data set, ready to train and to report on.

    Args:
        source: A preset's name, an existing folder or ``.parquet`` file, or a hub id ``owner/name``.
        path: For a preset: one's own copy instead of the download.
        image_size: Side of the square or (H, W), in pixels.
        channels: 1 (gray) or 3 (RGB).
        image_column: Parquet and hub: the column with the images.
        label_column: Parquet and hub: the column with the labels.
        train_splits: Names of the source's splits that are joined for train.
        test_splits: Names of the splits that are joined for test; empty to cut test out of train.
        config_name: Parquet and hub: the configuration.
        revision: Hub: branch, tag or commit.
        top_classes: Keep only so many classes, those with the most images.
        validation: Share of the source's train images for validation; ``None``: the preset's, or 0.1.
        auxiliary: Share for the attacker, disjoint from all the rest; ``None``: the preset's, or 0 (none).
        test: Share for test where the source has no test images; ``None``: the preset's, or 0.2.
        train_limit: Use only so many of the source's train images, before parts are taken from them.
        test_limit: Report on only so many test images.
        seed: Decides which images go where.
        cache: Keep the decoded images on disk.
        cache_dir: Where; see :func:`~sfumato.data.cache.default_cache_dir`.
        progress: Told how many images are decoded, the first time.

    Returns:
        The parts, and what the preset's paper does to training images.

    Raises:
        InputError: An argument or something in the source that cannot be used.
        StorageError: The download or the decoded images cannot be written.
    """
    usual = PRESETS[source].fractions if source in PRESETS else Fractions()
    raw = load_source(
        source,
        path=path,
        image_size=image_size,
        channels=channels,
        image_column=image_column,
        label_column=label_column,
        train_splits=train_splits,
        test_splits=test_splits,
        config_name=config_name,
        revision=revision,
        top_classes=top_classes,
        cache=cache,
        cache_dir=cache_dir,
        progress=progress,
    )
    if raw.test is not None and test is not None:
        raise InputError("test", test, "None, as the source has test images (leave them out with test_splits=())")
    splits = make_splits(
        raw.train,
        raw.test,
        validation=usual.validation if validation is None else validation,
        auxiliary=usual.auxiliary if auxiliary is None else auxiliary,
        test_fraction=usual.test if test is None else test,
        train_limit=train_limit,
        test_limit=test_limit,
        seed=seed,
    )
    return replace(splits, augment=PRESETS[source].augment if source in PRESETS else None)
