"""Attacks on the feature: reconstruct the image from what is sent."""

from sfumato.attacks.feature.decoder import DecoderAttack
from sfumato.attacks.feature.deep_prior import DeepPriorAttack
from sfumato.attacks.feature.rmle import RMLEAttack

__all__ = ["DecoderAttack", "DeepPriorAttack", "RMLEAttack"]
