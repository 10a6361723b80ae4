"""Attacks on the feature: reconstruct the image from what is sent."""

from sfumato.attacks.feature.decoder import DecoderAttack
from sfumato.attacks.feature.deep_prior import DeepPriorAttack
from sfumato.attacks.feature.ensemble import EnsembleAttack
from sfumato.attacks.feature.gan import GANAttack
from sfumato.attacks.feature.generator import GeneratorAttack
from sfumato.attacks.feature.latent_prior import LatentPriorAttack
from sfumato.attacks.feature.rmle import RMLEAttack

__all__ = [
    "DecoderAttack",
    "DeepPriorAttack",
    "EnsembleAttack",
    "GANAttack",
    "GeneratorAttack",
    "LatentPriorAttack",
    "RMLEAttack",
]
