"""Cut a data set into train, validation, test and auxiliary: seeded, disjoint, stratified by class."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sfumato.data.dataset import ImageSet, Splits
from sfumato.errors import InputError


@dataclass(frozen=True)
class Fractions:
    """How much of the training images goes to each part; what is left is train.

    Args:
        validation: Share that selects the model.
        auxiliary: Share that an attacker owns and the model never sees; 0 sets none aside.
        test: Share that is only reported on, where the source has no test images of its own.

    Raises:
        InputError: A share outside [0, 1), or shares that leave nothing to train on.
    """

    validation: float = 0.1
    auxiliary: float = 0.0
    test: float = 0.2

    def __post_init__(self) -> None:
        for name in ("validation", "auxiliary", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "a fraction from 0 to below 1")
        together = self.validation + self.auxiliary + self.test
        if together >= 1:
            raise InputError(
                "validation + auxiliary + test",
                round(together, 6),
                "less than 1, to leave images to train on",
            )


def make_splits(
    train: ImageSet,
    test: ImageSet | None = None,
    *,
    validation: float = 0.1,
    auxiliary: float = 0.0,
    test_fraction: float = 0.2,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int,
) -> Splits:
    """Cut ``train`` into disjoint parts, each with the classes in the same proportions.

    The proportions are exact but for rounding, at most an image or two a class. The parts are taken one
    after the other from one order drawn from the seed, test first: which images are tested on does not
    change with what is set aside for validation, nor that with what is set aside for the attacker.

    Args:
        train: The images to cut up. All fractions are shares of these.
        test: Test images that come with the source; ``None`` takes ``test_fraction`` of ``train``.
        validation: Share for validation.
        auxiliary: Share for the attacker; 0 gives ``Splits.auxiliary = None``.
        test_fraction: Share for test; not used where ``test`` is given.
        train_limit: Use only so many of ``train`` (stratified), before any part is taken from them: the
            parts shrink together. A limit above the number of images is no limit.
        test_limit: Report on only so many of the test images (stratified).
        seed: Decides which images go where.

    Raises:
        InputError: Fractions that do not fit, a limit below 1, a part that would be empty, or test images
            of other classes or another shape.
    """
    fractions = Fractions(validation, auxiliary, test_fraction if test is None else 0.0)
    _check_limits(train_limit=train_limit, test_limit=test_limit)
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randperm(len(train), generator=generator)
    pool, _ = stratified(train.labels, pool, _capped(train_limit, pool))
    counts = _counts(fractions, len(pool), has_test=test is not None)

    if test is None:
        test, (tested, pool) = train, stratified(train.labels, pool, counts["test"])
    else:
        _check_alike(train, test)
        tested = torch.randperm(len(test), generator=generator)
    tested, _ = stratified(test.labels, tested, _capped(test_limit, tested))
    validated, pool = stratified(train.labels, pool, counts["validation"])
    owned, pool = stratified(train.labels, pool, counts["auxiliary"])
    return Splits(
        train=train.select(pool),
        validation=train.select(validated),
        test=test.select(tested),
        auxiliary=train.select(owned) if auxiliary else None,
    )


def stratified(labels: Tensor, pool: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Part a pool of images into ``count`` of them, stratified by class, and the rest.

    Of each class the first ones in the pool are taken; how many is its share of the pool, rounded so that
    the sum is ``count`` (largest remainders first, then the lower label).

    Args:
        labels: int64, shape (N,): labels of all images.
        pool: int64, shape (P,): images to choose from, as indices into ``labels``.
        count: How many to take, 0 to P.

    Returns:
        Indices taken and indices left, both in the pool's order.
    """
    of = labels.to(pool.device)[pool]
    counts = torch.bincount(of)
    # In integers: a float's rounding must not move an image from one part to another.
    quotas, remainders = counts * count // max(len(pool), 1), counts * count % max(len(pool), 1)
    short = count - int(quotas.sum())
    quotas[remainders.argsort(descending=True, stable=True)[:short]] += 1

    by_class = of.argsort(stable=True)
    place_in_class = torch.empty_like(of)
    place_in_class[by_class] = torch.arange(len(of)) - (counts.cumsum(0) - counts)[of[by_class]]
    taken = place_in_class < quotas[of]
    return pool[taken], pool[~taken]


def _counts(fractions: Fractions, total: int, *, has_test: bool) -> dict[str, int]:
    """Images of each part that is taken out of ``total``."""
    counts = {name: round(total * fraction) for name, fraction in asdict(fractions).items()}
    for name, count in counts.items():
        fraction = getattr(fractions, name)
        needed = fraction > 0 or name == "validation" or (name == "test" and not has_test)
        if needed and count == 0:
            raise InputError(name, fraction, f"a fraction that gives the part at least one of the {total} images")
    left = total - sum(counts.values())
    if left < 1:  # rounding up three parts of very few images
        raise InputError("train", f"{left} of {total} images", "more images, or smaller fractions for other parts")
    return counts


def _capped(limit: int | None, pool: Tensor) -> int:
    return len(pool) if limit is None else min(limit, len(pool))


def _check_limits(**limits: int | None) -> None:
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise InputError(name, limit, "1 or more, or None for all images")


def _check_alike(train: ImageSet, test: ImageSet) -> None:
    if test.classes != train.classes:
        raise InputError(f"{test.name}.classes", test.classes, f"the classes of train: {', '.join(train.classes)}")
    if test.image_shape != train.image_shape:
        raise InputError(f"{test.name}.image_shape", test.image_shape, f"the shape of train: {train.image_shape}")
