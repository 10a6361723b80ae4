"""Published methods as short chains of parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_type_hints

from sfumato.defenses.adversary import Adversary
from sfumato.defenses.base import Defense
from sfumato.defenses.bottleneck import Bottleneck
from sfumato.defenses.cem import CEM
from sfumato.defenses.chain import chain
from sfumato.defenses.deeper_edge import DeeperEdge
from sfumato.defenses.distance_correlation import DistanceCorrelation
from sfumato.defenses.dropout import Dropout
from sfumato.defenses.fused_attention import FusedAttention
from sfumato.defenses.gated_attention import GatedAttention
from sfumato.defenses.lipschitz import Lipschitz
from sfumato.defenses.noise import Noise
from sfumato.defenses.prune import Prune
from sfumato.defenses.slot_attention import SlotAttention


@dataclass(frozen=True)
class Recipe:
    """A registered recipe: a function from arguments to a defense, and where it comes from."""

    build: Callable[..., Defense]
    summary: str
    source: str


def none() -> Defense:
    """No defense: the network cut in two, its feature sent as it is (No_defense in the CEM tables)."""
    return chain()


def bottleneck(channels: int = 8) -> Defense:
    """Bottleneck alone, without noise."""
    return Bottleneck(channels)


def noise(sigma: float = 0.025, channels: int = 8) -> Defense:
    """Gaussian noise on a bottleneck."""
    return chain(Bottleneck(channels), Noise(sigma))


def laplace_noise(sigma: float = 0.025, channels: int = 8) -> Defense:
    """Laplace noise on a bottleneck."""
    return chain(Bottleneck(channels), Noise(sigma, kind="laplace"))


def dropout(p: float = 0.2, channels: int = 8) -> Defense:
    """Dropout of feature elements on a bottleneck."""
    return chain(Bottleneck(channels), Dropout(p))


def dist_corr(alpha: float = 1.0, channels: int = 8) -> Defense:
    """Distance correlation on a bottleneck."""
    return chain(Bottleneck(channels), DistanceCorrelation(alpha))


def noise_nopeek(alpha: float = 1.0, sigma: float = 0.025, channels: int = 8) -> Defense:
    """Noise and distance correlation on a bottleneck."""
    return chain(noise(sigma, channels), DistanceCorrelation(alpha))


def noise_arl(alpha: float = 0.3, sigma: float = 0.025, channels: int = 8) -> Defense:
    """Noise on a bottleneck, and an adversary."""
    return chain(noise(sigma, channels), Adversary(alpha))


def res_sfl(alpha: float = 0.3, channels: int = 8) -> Defense:
    """An adversary on a bottleneck; its resistance is transferred with the setting ``model.edge_from``."""
    return chain(Bottleneck(channels), Adversary(alpha, "ssim"))


def patrol(alpha: float = 0.3, beta: float = 0.1, layers: int = 2, at: float = 0.75, channels: int = 8) -> Defense:
    """A deeper edge pruned back to the size of the bottleneck's, an adversary and a Lipschitz penalty."""
    return chain(DeeperEdge(layers), Bottleneck(channels), Prune(at), Lipschitz(beta), Adversary(alpha))


_CEM_TABLES = "Xia et al. 2025 (CEM), tables 1 to 4"
RECIPES: dict[str, Recipe] = {
    "none": Recipe(none, "no defense", _CEM_TABLES),
    "bottleneck": Recipe(bottleneck, "few bounded channels", "Li et al. 2022 (ResSFL)"),
    "noise": Recipe(noise, "bottleneck and Gaussian noise", "He et al. 2019"),
    "laplace_noise": Recipe(laplace_noise, "bottleneck and Laplace noise", "Titcombe et al. 2021"),
    "dropout": Recipe(dropout, "bottleneck and dropped feature elements", "He et al. 2020"),
    "dist_corr": Recipe(dist_corr, "bottleneck and distance correlation", "Vepakomma et al. 2020 (NoPeek)"),
    "noise_nopeek": Recipe(noise_nopeek, "bottleneck, noise and distance correlation", "Titcombe et al. 2021"),
    "noise_arl": Recipe(noise_arl, "bottleneck, noise and an adversary", _CEM_TABLES),
    "res_sfl": Recipe(res_sfl, "bottleneck and an adversary", "Li et al. 2022 (ResSFL)"),
    "patrol": Recipe(
        patrol, "deeper edge, pruned, with an adversary and a Lipschitz penalty", "Ding et al. 2024 (PATROL)"
    ),
}


@dataclass(frozen=True)
class Partner:
    """A part that stands in for the conditional entropy, and joins every method of the CEM tables.

    Args:
        part: Needs Gaussian noise in the channel.
        arguments: Which of its arguments the recipes have.
        title: For their summaries.
        source: Of the combination.
    """

    part: type[Defense]
    arguments: tuple[str, ...]
    title: str
    source: str


_MIXTURE = ("weight", "components", "schedule", "threshold", "variant", "per_class", "shrinkage")
_LEARNED = ("weight", "schedule", "threshold")
_GATE = ("uniform", "objective")
# A new one is one entry here: a recipe with each method of PAIRED follows from it.
SURROGATES: dict[str, Partner] = {
    "cem": Partner(CEM, _MIXTURE, "CEM", _CEM_TABLES),
    "gated": Partner(GatedAttention, (*_LEARNED, *_GATE), "gated attention", GatedAttention.source),
    "slot": Partner(SlotAttention, (*_LEARNED, "slots"), "slot attention", SlotAttention.source),
    "fused": Partner(FusedAttention, (*_LEARNED, "slots", *_GATE), "gated and slot attention", FusedAttention.source),
}
PAIRED = ("bottleneck", "dist_corr", "dropout", "patrol", "res_sfl", "noise_nopeek", "noise_arl")


def paired(base: Callable[..., Defense], surrogate: Partner) -> Callable[..., Defense]:
    """The recipe ``base`` with a surrogate behind it, and noise in its channel where it has none of its own.

    Returns:
        A function of the surrogate's arguments, then ``sigma`` where noise is added, then the base's; its signature
        and its type hints say so.

    Raises:
        ValueError: An argument of both has the same name.
    """
    own = dict(inspect.signature(base).parameters)
    theirs = {name: inspect.signature(surrogate.part).parameters[name] for name in surrogate.arguments}
    added = {} if "sigma" in own else {"sigma": inspect.signature(noise).parameters["sigma"]}
    if own.keys() & theirs.keys() or added.keys() & theirs.keys():
        raise ValueError(f"{surrogate.part.name} and {base.__name__} have an argument of the same name")
    hints = get_type_hints(surrogate.part) | get_type_hints(noise) | get_type_hints(base)
    parameters = [p.replace(annotation=hints[name]) for name, p in (theirs | added | own).items()]
    signature = inspect.Signature(parameters, return_annotation=Defense)

    def build(*args: object, **named: object) -> Defense:
        given = signature.bind(*args, **named)
        given.apply_defaults()
        defense, part = (
            make(**{name: given.arguments[name] for name in names})
            for make, names in ((base, own), (surrogate.part, theirs))
        )
        # Noise stands where methods with noise of their own have it: the same model is the same chain.
        channel, watchers = ([p for p in defense.parts() if p.watches is which] for which in (False, True))
        return chain(*channel, *(Noise(given.arguments[name]) for name in added), *watchers, part)

    build.__name__ = build.__qualname__ = f"{base.__name__}_{surrogate.part.name}"
    build.__doc__ = f"{surrogate.title} with {base.__name__}{' and noise' if added else ''}."
    build.__signature__ = signature  # type: ignore[attr-defined]
    build.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": Defense}
    return build


def _pairs() -> dict[str, Recipe]:
    found = {}
    for kind, surrogate in SURROGATES.items():
        for name in PAIRED:
            noisy = "" if "sigma" in inspect.signature(RECIPES[name].build).parameters else ", noise"
            summary = f"{RECIPES[name].summary}{noisy}; and {surrogate.title}"
            # With the bottleneck alone it is the surrogate's own recipe.
            label = kind if name == "bottleneck" else f"{name}_{kind}"
            found[label] = Recipe(paired(RECIPES[name].build, surrogate), summary, surrogate.source)
    return found


RECIPES |= _pairs()
