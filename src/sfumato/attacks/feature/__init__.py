"""Attacks on the feature: reconstruct the image from what is sent."""

from sfumato.attacks.feature.decoder import DecoderAttack
from sfumato.attacks.feature.gan import GANAttack

__all__ = ["DecoderAttack", "GANAttack"]
