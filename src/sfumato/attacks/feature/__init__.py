"""Attacks on the feature: reconstruct the image from what is sent."""

from sfumato.attacks.feature.decoder import DecoderAttack

__all__ = ["DecoderAttack"]
