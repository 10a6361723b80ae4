"""Published methods as short chains of parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sfumato.defenses.base import Defense
from sfumato.defenses.bottleneck import Bottleneck
from sfumato.defenses.cem import CEM
from sfumato.defenses.chain import chain
from sfumato.defenses.distance_correlation import DistanceCorrelation
from sfumato.defenses.dropout import Dropout
from sfumato.defenses.noise import Noise


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


def cem(weight: float = 16.0, sigma: float = 0.025, channels: int = 8) -> Defense:
    """CEM on noise on a bottleneck (Bottleneck+CEM in the CEM tables, whose channel has this noise)."""
    return chain(noise(sigma, channels), CEM(weight))


def dropout_cem(weight: float = 16.0, p: float = 0.2, sigma: float = 0.025, channels: int = 8) -> Defense:
    """CEM with dropout and noise on a bottleneck."""
    return chain(dropout(p, channels), Noise(sigma), CEM(weight))


def dist_corr_cem(weight: float = 16.0, alpha: float = 1.0, sigma: float = 0.025, channels: int = 8) -> Defense:
    """CEM with distance correlation and noise on a bottleneck."""
    return chain(dist_corr(alpha, channels), Noise(sigma), CEM(weight))


def noise_nopeek_cem(weight: float = 16.0, alpha: float = 1.0, sigma: float = 0.025, channels: int = 8) -> Defense:
    """CEM with distance correlation on a noisy bottleneck.

    The same parts as :func:`dist_corr_cem`: CEM needs the noise, which makes DistCorr+CEM and Noise_Nopeek+CEM one.
    """
    return chain(noise_nopeek(alpha, sigma, channels), CEM(weight))


_CEM_TABLES = "Xia et al. 2025 (CEM), tables 1 to 4"
RECIPES: dict[str, Recipe] = {
    "none": Recipe(none, "no defense", _CEM_TABLES),
    "bottleneck": Recipe(bottleneck, "few bounded channels", "Li et al. 2022 (ResSFL)"),
    "noise": Recipe(noise, "bottleneck and Gaussian noise", "He et al. 2019"),
    "laplace_noise": Recipe(laplace_noise, "bottleneck and Laplace noise", "Titcombe et al. 2021"),
    "dropout": Recipe(dropout, "bottleneck and dropped feature elements", "He et al. 2020"),
    "dist_corr": Recipe(dist_corr, "bottleneck and distance correlation", "Vepakomma et al. 2020 (NoPeek)"),
    "noise_nopeek": Recipe(noise_nopeek, "bottleneck, noise and distance correlation", "Titcombe et al. 2021"),
    "cem": Recipe(cem, "bottleneck, noise and CEM", _CEM_TABLES),
    "dropout_cem": Recipe(dropout_cem, "dropout with noise and CEM", _CEM_TABLES),
    "dist_corr_cem": Recipe(dist_corr_cem, "distance correlation with noise and CEM", _CEM_TABLES),
    "noise_nopeek_cem": Recipe(noise_nopeek_cem, "Noise_Nopeek with CEM", _CEM_TABLES),
}
