"""Several defenses as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from sfumato.defenses.base import BoundDefense, Change, Context, Defense, Epoch, Player
from sfumato.models import SplitModel

T = TypeVar("T")


@dataclass(frozen=True)
class Chain(Defense):
    """Parts in order, folded left to right; made by :func:`chain`."""

    name: ClassVar[str] = "chain"
    source: ClassVar[str] = ""
    members: tuple[Defense, ...] = ()

    def parts(self) -> tuple[Defense, ...]:
        """Its members."""
        return self.members

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        bound: dict[int, BoundDefense] = {}
        # Watchers last: what they see in training is the feature of the finished split, whatever comes after them.
        for i in sorted(range(len(self.members)), key=lambda i: self.members[i].watches):
            bound[i] = self.members[i].bind(split, generator=generator)
            split = bound[i].defend(split)
        return BoundChain([bound[i] for i in range(len(self.members))])


def chain(*defenses: Defense) -> Defense:
    """Compose defenses, left to right, each seeing the split as those before it left it, watchers the finished one.

    ``chain()`` is no defense, ``chain(a)`` is ``a``, and ``chain(chain(a, b), c)`` equals ``chain(a, chain(b, c))``.
    Losses keep their names (a repeated name gets the part's position), players add up.
    """
    members = tuple(part for defense in defenses for part in defense.parts())
    return members[0] if len(members) == 1 else Chain(members)


class BoundChain(BoundDefense):
    """The bound parts of a chain, in order."""

    def __init__(self, members: list[BoundDefense]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def _bound(self) -> list[BoundDefense]:
        return [member for member in self.members if isinstance(member, BoundDefense)]

    def defend(self, split: SplitModel) -> SplitModel:
        """Fold all parts into the split, left to right."""
        for member in self._bound():
            split = member.defend(split)
        return split

    def losses(self, ctx: Context) -> dict[str, Tensor]:
        """All losses, under their own names; a repeated name gets its part's position."""
        return _merge(member.losses(ctx) for member in self._bound())

    def players(self) -> tuple[Player, ...]:
        """All players."""
        return tuple(player for member in self._bound() for player in member.players())

    def epoch_start(self, epoch: Epoch) -> Change | None:
        """Let every part start; the last change holds all earlier ones, since each part changes what it finds."""
        change = None
        for member in self._bound():
            own = member.epoch_start(epoch)
            if own is not None:
                change, epoch = own, epoch.after(own)
        return change

    def epoch_end(self, epoch: Epoch) -> None:
        """Let every part end."""
        for member in self._bound():
            member.epoch_end(epoch)

    def restore(self, split: SplitModel, weights: Mapping[str, Tensor]) -> SplitModel:
        """Let every part restore what it changed."""
        for member in self._bound():
            split = member.restore(split, weights)
        return split

    def shield(self, probabilities: Tensor) -> Tensor:
        """All shields, left to right."""
        for member in self._bound():
            probabilities = member.shield(probabilities)
        return probabilities

    def theory(self) -> dict[str, float]:
        """All tracked figures; a repeated name gets its part's position."""
        return _merge(member.theory() for member in self._bound())


def _merge(named: Iterable[Mapping[str, T]]) -> dict[str, T]:
    collected: dict[str, T] = {}
    for i, values in enumerate(named):
        for name, value in values.items():
            collected[name if name not in collected else f"{name}_{i}"] = value
    return collected
