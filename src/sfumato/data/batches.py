"""Batches from images that are already in memory: one permutation per epoch, no copies, no workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.data.augment import Augment, to_unit
from sfumato.data.dataset import ImageSet
from sfumato.errors import InputError

_SEEDS = 2**62


@dataclass(frozen=True, eq=False)
class Batches:
    """An iterable of (x, y): float32 in [0, 1] of shape (B, C, H, W), and int64 of shape (B,).

    Each iteration is one epoch. It takes exactly one number from ``generator``, at its beginning, and
    derives from it the permutation and one seed per batch. So batch k is the same whether or not the
    batches before it were produced, and the generator ends in the same state however far one went. To
    resume within an epoch: put the generator back in the state it had when the epoch began, and iterate
    over ``dataclasses.replace(batches, start=k)``.

    With several ranks, every rank needs its own generator in the same state. All draw the same permutation,
    rank r takes every ``world_size``-th image of it from the r-th on, and all give the same number of
    batches. No image is dropped or repeated: where the images do not divide evenly, the last batch of some
    ranks has one image more than the others' (and so, at worst, one more than ``batch_size``).

    Args:
        images: The images, on the device where the batches are wanted.
        batch_size: Images in a batch, of one rank.
        shuffle: Draw a new order for each iteration; otherwise the images come in their own order.
        augment: Changes the training images; ``None`` leaves them as they are.
        generator: Needed to shuffle or to augment.
        drop_last: Leave out what does not fill a batch.
        rank: Which share to give, 0 to ``world_size - 1``.
        world_size: Number of shares.
        start: The batch to start at, in every iteration.

    Raises:
        InputError: An argument out of range, no generator where one is needed, or not a single batch.
    """

    images: ImageSet
    batch_size: int
    shuffle: bool
    augment: Augment | None = None
    generator: torch.Generator | None = None
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError("batch_size", self.batch_size, "1 or more")
        if not 1 <= self.world_size <= len(self.images):
            raise InputError("world_size", self.world_size, f"1 to {len(self.images)} (the number of images)")
        if not 0 <= self.rank < self.world_size:
            raise InputError("rank", self.rank, f"0 to {self.world_size - 1}")
        if self.drop_last and self.total == 0:
            most = len(self.images) // self.world_size
            raise InputError("batch_size", self.batch_size, f"at most {most} to fill a batch with drop_last")
        if not 0 <= self.start <= self.total:
            raise InputError("start", self.start, f"0 to {self.total} (the number of batches)")
        if self.generator is None and (self.shuffle or self.augment is not None):
            raise InputError("generator", None, "a torch.Generator, to shuffle or augment with")

    @property
    def total(self) -> int:
        """Batches in a whole epoch; the same for every rank."""
        smallest_share = len(self.images) // self.world_size
        if self.drop_last:
            return smallest_share // self.batch_size
        return -(-smallest_share // self.batch_size)

    def __len__(self) -> int:
        """Batches that one iteration gives: those of an epoch from ``start`` on."""
        return self.total - self.start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self._epoch_generator()
        # On the CPU, whatever the images' device: the order must not depend on where one trains.
        order = torch.randperm(len(self.images), generator=epoch) if self.shuffle else None
        seeds = torch.randint(_SEEDS, (self.total, self.world_size), generator=epoch)[:, self.rank].tolist()
        return self._produce(order, seeds)

    def _epoch_generator(self) -> torch.Generator:
        epoch = torch.Generator()
        if self.generator is not None:
            seed = torch.randint(_SEEDS, (), generator=self.generator, device=self.generator.device)
            epoch.manual_seed(int(seed))
        return epoch

    def _produce(self, order: Tensor | None, seeds: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        pixels, labels = self.images.images, self.images.labels
        share = slice(self.rank, None, self.world_size)
        if order is None:  # views: nothing is copied before a batch becomes float
            pixels, labels = pixels[share], labels[share]
        else:
            order = order[share].to(pixels.device)
        for k in range(self.start, self.total):
            is_last = k == self.total - 1
            end = None if is_last and not self.drop_last else (k + 1) * self.batch_size
            part = slice(k * self.batch_size, end)
            if order is None:
                x, y = pixels[part], labels[part]
            else:  # index_select copies image by image, indexing goes pixel by pixel
                x, y = pixels.index_select(0, order[part]), labels.index_select(0, order[part])
            yield self._finish(x, seeds[k]), y

    def _finish(self, pixels: Tensor, seed: int) -> Tensor:
        if self.augment is None:
            return to_unit(pixels)
        return self.augment(pixels, torch.Generator().manual_seed(seed))
