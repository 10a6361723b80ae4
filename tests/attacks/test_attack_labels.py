from __future__ import annotations

from sfumato.attacks import DecoderAttack, labels


def test_labels_tell_what_sets_an_attack_apart():
    attacks = [
        DecoderAttack(epochs=3),
        DecoderAttack(epochs=3, observations=16),
        DecoderAttack(epochs=3, width=8, images=100),
    ]
    assert labels(attacks) == ("decoder", "decoder (observations=16)", "decoder (images=100, width=8)")
    assert labels(attacks[2:]) == ("decoder",)


def test_labels_tell_threat_models_apart():
    attacks = [DecoderAttack(), DecoderAttack(threat_model="gray-box"), DecoderAttack(threat_model="white-box")]
    assert labels(attacks) == ("decoder", "decoder (threat_model=gray-box)", "decoder (threat_model=white-box)")
    assert labels(attacks[1:]) == labels(attacks)[1:]
    assert labels(attacks[1:2]) == ("decoder",)


def test_labels_of_different_attacks_differ():
    attacks = [DecoderAttack(epochs=e, lr=lr, observations=k) for e in (50, 2) for lr in (0.001, 0.1) for k in (1, 4)]
    assert len(set(labels(attacks))) == 8
