"""Each level of ``auto`` from end to end, under every threat model, on sizes that take seconds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_toys import generator, identity_split, make_images, make_knowledge, make_split, runtime, target_of
from torch import nn

from sfumato.attacks import THREAT_MODELS, Auto, labels, scene_of, strongest
from sfumato.attacks import auto as module
from sfumato.errors import InputError

NETWORKS = {
    "quick": ["decoder", "decoder (observations=16)"],
    "standard": [
        "decoder",
        "generator",
        "decoder (architecture=unet)",
        "latent_prior",
        "decoder (observations=4)",
        "decoder (observations=16)",
    ],
    "thorough": [
        "decoder",
        "generator",
        "decoder (architecture=unet)",
        "latent_prior",
        "decoder (observations=4)",
        "decoder (observations=16)",
        "decoder (architecture=transformer)",
        "ensemble",
        "gan",
        "generator (observations=16)",
        "latent_prior (observations=16)",
    ],
}
SEARCHES = {"quick": ["rmle"], "standard": ["rmle", "rmle (observations=16)"]}
SEARCHES["thorough"] = [*SEARCHES["standard"], "deep_prior", "deep_prior (optimize_input=True)"]


@pytest.mark.slow
@pytest.mark.parametrize("threat_model", THREAT_MODELS)
@pytest.mark.parametrize("level", NETWORKS)
def test_from_end_to_end(level: Any, threat_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._SIZES, level, module._Size(steps=4, depth=0, width=4, search=6, restarts=2))
    auto, target, knowledge = Auto(level), target_of(make_split(), threat_model), make_knowledge()
    victims = {"train": make_images(3, seed=7), "test": make_images(6, seed=8)}
    made = auto(target, knowledge, victims, generator=generator(0), runtime=runtime())

    scene = scene_of(target_of(make_split(), threat_model), knowledge)
    members = dict(zip(labels(auto.members(scene)), auto.members(scene), strict=True))
    assert list(made) == list(members), "every member has a result, in order"
    searches = SEARCHES[level] if threat_model == "white-box" else []
    assert sorted(made) == sorted([*NETWORKS[level], *searches])

    for group, images in victims.items():
        best = strongest(made, group)
        for i in range(len(images)):
            assert float(best.quality.ssim[i]) == max(float(one.quality[group].ssim[i]) for one in made.values())
            assert float(best.quality.mse[i]) == min(float(one.quality[group].mse[i]) for one in made.values())
            assert torch.equal(best.images[i], made[best.by_ssim[i]].images[group][i])
            assert float(made[best.by_mse[i]].quality[group].mse[i]) == float(best.quality.mse[i])

    for label, one in made.items():
        assert (one.threat_model, one.observations) == (threat_model, members[label].observations)
        assert (one.queries == scene.queries) == members[label].query_free
        assert not one.diverged
    own = sum(one.queries - scene.queries for one in made.values())
    assert target.queries == scene.queries + own, "what is reported is what was sent"


@pytest.mark.slow
@pytest.mark.parametrize("threat_model", THREAT_MODELS)
def test_a_feature_larger_than_the_image(threat_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who knows the edge attacks it; who does not is told so before anything is trained."""
    monkeypatch.setitem(module._SIZES, "standard", module._Size(steps=4, depth=0, width=4, search=6))
    model = identity_split().with_parts(edge=nn.ConvTranspose2d(1, 2, 2, 2))
    target, victims = target_of(model, threat_model), {"test": make_images(3, seed=8)}

    def run() -> list[str]:
        return list(Auto()(target, make_knowledge(), victims, generator=generator(0), runtime=runtime()))

    if threat_model == "black-box":
        with pytest.raises(InputError, match="that one of its attacks can invert"):
            run()
        assert target.queries == 2
    else:
        assert run() == [*(["rmle"] if threat_model == "white-box" else []), "generator", "latent_prior"]
