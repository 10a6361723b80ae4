"""Recipes that are made from a method and a surrogate."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import ClassVar, Literal, get_type_hints

import pytest
import torch

from sfumato.arguments import call, signature_of
from sfumato.defenses import (
    CEM,
    RECIPES,
    SURROGATES,
    Adversary,
    Bottleneck,
    BoundDefense,
    DeeperEdge,
    Defense,
    DistanceCorrelation,
    Dropout,
    FusedAttention,
    GatedAttention,
    Lipschitz,
    Noise,
    Partner,
    Prune,
    build,
    chain,
)
from sfumato.defenses.recipes import PAIRED, dropout, noise_arl, paired
from sfumato.errors import InputError
from sfumato.models import SplitModel


@dataclass(frozen=True)
class Other(Defense):
    """Another surrogate, with arguments of its own."""

    name: ClassVar[str] = "other"
    source: ClassVar[str] = "here"
    strength: float = 2.0
    slots: int = 3
    mode: Literal["soft", "hard"] = "soft"

    def _bind(self, split: SplitModel, generator: torch.Generator) -> BoundDefense:
        return BoundDefense()


OTHER = Partner(Other, ("strength", "mode"), "Other", "here")


def test_what_was_written_by_hand_before() -> None:
    assert build("cem") == chain(Bottleneck(8), Noise(0.025), CEM(16))
    assert build("dropout_cem") == chain(Bottleneck(8), Dropout(0.2), Noise(0.025), CEM(16))
    assert build("dist_corr_cem") == chain(Bottleneck(8), Noise(0.025), DistanceCorrelation(1.0), CEM(16))
    assert build("noise_nopeek_cem") == chain(Bottleneck(8), Noise(0.025), DistanceCorrelation(1.0), CEM(16))
    assert build(
        {"recipe": "patrol_cem", "layers": 1, "sigma": 0.1, "weight": 2, "components": 3, "beta": 0.2}
    ) == chain(
        DeeperEdge(1), Bottleneck(8), Noise(0.1), Prune(0.75), Lipschitz(0.2), Adversary(0.3), CEM(2.0, components=3)
    )


@pytest.mark.parametrize(("quiet", "noisy"), [("dist_corr", "noise_nopeek"), ("res_sfl", "noise_arl")])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_method_with_the_noise_of_another_is_that_one(quiet: str, noisy: str, surrogate: str) -> None:
    """So that both are trained once."""
    assert build(f"{quiet}_{surrogate}") == build(f"{noisy}_{surrogate}")


def test_the_gate_is_told_through_the_recipes() -> None:
    given = {"uniform": 0.1, "objective": "joint"}
    gated = build({"recipe": "dropout_gated", "weight": 2, **given}).parts()[-1]
    assert gated == GatedAttention(2.0, uniform=0.1, objective="joint")
    fused = build({"recipe": "fused", "slots": 3, **given}).parts()[-1]
    assert fused == FusedAttention(slots=3, uniform=0.1, objective="joint")
    with pytest.raises(InputError, match=r"objective: got 'largest'"):
        build({"recipe": "gated", "objective": "largest"})


def test_every_method_has_every_surrogate() -> None:
    for kind in SURROGATES:
        for base in PAIRED:
            name = kind if base == "bottleneck" else f"{base}_{kind}"
            parts = RECIPES[name].build().parts()
            assert parts[-1].name == SURROGATES[kind].part.name
            assert sum(isinstance(part, Noise) for part in parts) == 1
            assert SURROGATES[kind].title in RECIPES[name].summary


def test_signature_is_the_surrogates_and_the_methods() -> None:
    made = paired(dropout, OTHER)
    assert str(inspect.signature(made)).startswith(
        "(strength: float = 2.0, mode: Literal['soft', 'hard'] = 'soft', sigma"
    )
    assert signature_of(made) == {
        "strength": ("float", 2.0),
        "mode": ("soft | hard", "soft"),
        "sigma": ("float", 0.025),
        "p": ("float", 0.2),
        "channels": ("int", 8),
    }
    assert set(get_type_hints(made)) == {"strength", "mode", "sigma", "p", "channels", "return"}
    assert list(signature_of(paired(noise_arl, OTHER))) == ["strength", "mode", "alpha", "sigma", "channels"]
    assert made.__name__ == "dropout_other"
    assert made.__doc__ == "Other with dropout and noise."
    assert paired(noise_arl, OTHER).__doc__ == "Other with noise_arl."


def test_calls() -> None:
    made = paired(dropout, OTHER)
    expected = chain(Bottleneck(4), Dropout(0.5), Noise(0.1), Other(7.0, mode="hard"))
    assert made(7.0, "hard", 0.1, p=0.5, channels=4) == expected
    given = {"strength": "7", "mode": "hard", "sigma": 0.1, "p": 0.5, "channels": 4}
    assert call(made, given, field="defense") == expected
    assert paired(noise_arl, OTHER)(alpha=2.0, sigma=0.3) == chain(Bottleneck(8), Noise(0.3), Adversary(2.0), Other())
    with pytest.raises(TypeError, match="slots"):
        made(slots=2)
    with pytest.raises(InputError, match=r"^defense.slots: got 2; accepted: one of .*strength"):
        call(made, {"slots": 2}, field="defense")
    with pytest.raises(InputError, match=r"mode: got 'loud'"):
        call(made, {"mode": "loud"}, field="defense")


def clashing(strength: float = 1.0) -> Defense:
    return Noise(strength)


def test_arguments_of_the_same_name_are_refused() -> None:
    with pytest.raises(ValueError, match="other and clashing have an argument of the same name"):
        paired(clashing, OTHER)
