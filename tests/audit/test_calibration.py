"""Test beds through the pipeline: pixels, split model, attacks of known error, and the verdict on inequalities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from sfumato.attacks import (
    THREAT_MODELS,
    Attack,
    BlackBox,
    DecoderAttack,
    GrayBox,
    Knowledge,
    Learned,
    ThreatModel,
    WhiteBox,
)
from sfumato.audit import (
    CALIBRATION_ATTACK,
    CALIBRATION_FITTING,
    Attacked,
    Bracket,
    Calibration,
    Sizes,
    images_of,
    measure,
    split_model_of,
    splits_of,
)
from sfumato.audit.calibration import NEAR, rounded
from sfumato.errors import InputError, Interrupted
from sfumato.information import STANDARD_BEDS, Bed, Estimate, Figures, Fitting, LinearGaussian
from sfumato.models import set_generator
from sfumato.training import Runtime, make_fabric

SMALL = Sizes(train=300, validation=50, test=700, samples=1000)
SHORT = Fitting(steps=60, batch=128, learning_rate=5e-3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bed_of(name: str = "smooth", sigma: float = 0.1) -> Bed:
    return STANDARD_BEDS[name].build(sigma)


def runtime() -> Runtime:
    return Runtime(fabric=make_fabric("cpu"))


@dataclass(frozen=True)
class Known(Attack):
    """Inverts by a function that it is given; sends some of its own images before."""

    name: ClassVar[str] = "known"
    source: ClassVar[str] = "test"
    threat_models: ClassVar[frozenset[ThreatModel]] = frozenset(THREAT_MODELS)
    cost: ClassVar[str] = "nothing"
    invert: Callable[[Tensor], Tensor] = lambda z: z
    diverged: bool = False

    def run(self, target: BlackBox, knowledge: Knowledge, *, generator: torch.Generator, runtime: Runtime) -> Learned:
        assert (len(knowledge.train), len(knowledge.validation), knowledge.origin) == (300, 50, "auxiliary")
        target.query(knowledge.train.images[:37] / 255)
        return Learned(self.invert, {}, self.diverged)


def test_images_of_a_bed() -> None:
    bed = bed_of("moods")
    images = images_of(bed, 500, generator=generator(), name="moods")
    x, component = bed.draw(500, generator=generator())
    assert (images.name, images.classes) == ("moods", ("component 0", "component 1"))
    assert torch.equal(images.labels, component)
    assert float((images.images / 255 - x.clamp(0, 1)).abs().max()) <= 0.5 / 255 + 1e-6
    assert images_of(bed_of(), 2, generator=generator()).classes == ("component 0",)


def test_a_bed_that_does_not_fit_into_pixels_is_refused() -> None:
    bed = bed_of()
    assert isinstance(bed, LinearGaussian)
    with pytest.raises(InputError, match=r"bright: pixels outside \[0, 1\]"):
        images_of(replace(bed, mean=bed.mean + 0.35), 200, generator=generator(), name="bright")


def test_splits_are_independent_images_of_the_sizes_asked_for() -> None:
    made = splits_of(bed_of(), Sizes(30, 20, 10), generator=generator())
    assert [len(part) for part in (made.train, made.validation, made.test)] == [30, 20, 10]
    every = torch.cat([part.images for part in (made.train, made.validation, made.test)]).flatten(1)
    assert len(every.unique(dim=0)) == 60


@pytest.mark.parametrize("field", ["train", "validation", "test", "samples"])
def test_sizes_are_checked(field: str) -> None:
    with pytest.raises(InputError, match=field):
        Sizes(**{field: 1})


@pytest.mark.parametrize("name", STANDARD_BEDS)
def test_the_split_model_sends_what_the_bed_says(name: str) -> None:
    bed = bed_of(name, 0.2)
    state = torch.get_rng_state()
    split = split_model_of(bed)
    assert torch.equal(torch.get_rng_state(), state)
    images = images_of(bed, 400, generator=generator())
    x = images.images / 255
    set_generator(split, generator(1))
    with torch.no_grad():
        clean, sent, logits = split.edge(x), split.send(x), split(x)
    shape = bed.channel.feature_shape
    expected = (x.double().flatten(1) @ bed.channel.weight.T).view(400, *shape)
    torch.testing.assert_close(clean.double(), expected, atol=1e-5, rtol=1e-5)
    assert split.feature.shape == shape
    assert split.feature.noise_variance == pytest.approx(0.04)
    assert float((sent - clean).std()) == pytest.approx(0.2, rel=0.05)
    assert logits.shape == (400, bed.components)


@pytest.mark.parametrize("sigma", [0.003, 0.1])
@pytest.mark.parametrize("name", STANDARD_BEDS)
def test_what_is_known_is_what_is_measured(name: str, sigma: float) -> None:
    bed = bed_of(name, sigma)
    row = measure(name, bed, attack=None, sizes=Sizes(2, 2, 1500, 2000), seed=4, runtime=runtime())
    assert row.bed == name
    assert row.attack is None
    assert row.broken() == ()
    assert row.verdict() == "holds"
    assert row.figures == rounded(bed).figures(generator=generator(4), samples=2000)
    assert row == measure(name, bed, attack=None, sizes=Sizes(2, 2, 1500, 2000), seed=4, runtime=runtime())
    assert row.measured != measure(name, bed, attack=None, sizes=Sizes(2, 2, 1500, 2000), runtime=runtime()).measured


def test_rounding_to_8_bits_is_not_forgotten() -> None:
    """Where pixels vary by less than a step of 1/255, a bed without rounding would be wrong by a seventh."""
    white = bed_of("white", 0.1)
    assert isinstance(white, LinearGaussian)
    faint = replace(white, covariance=0.003**2 * torch.eye(144))
    row = measure("faint", faint, attack=None, sizes=Sizes(2, 2, 1500, 2000), runtime=runtime())
    naive = faint.figures().mmse.value
    assert row.figures.mmse.value == pytest.approx(naive + 1 / 12 / 255**2, rel=1e-2)
    assert abs(row.measured.value - row.figures.mmse.value) <= 4 * row.measured.error < 0.02 * naive
    assert row.broken() == ()


@pytest.mark.parametrize("name", ["smooth", "moods"])
def test_the_best_reconstruction_as_an_attack_has_ratio_1(name: str) -> None:
    bed = bed_of(name)
    best = Known(lambda z: rounded(bed).reconstruct(z).float())
    row = measure(name, bed, attack=best, sizes=SMALL, runtime=runtime())
    assert row.attack is not None
    # On the very same features: chance is out of it.
    assert row.attack.ratio.value == pytest.approx(1, abs=1e-4)
    assert row.attack.mse.value == pytest.approx(row.measured.value, rel=1e-4)
    assert row.attack.mse.error > 100 * row.attack.ratio.error * row.figures.mmse.value
    assert row.verdict() == "holds"


def test_answering_with_the_mean_falls_short() -> None:
    bed = bed_of()
    row = measure(
        "smooth", bed, attack=Known(lambda z: torch.full((len(z), 1, 12, 12), 0.5)), sizes=SMALL, runtime=runtime()
    )
    assert row.attack is not None
    expected = row.figures.prior_variance / row.figures.mmse.value
    assert abs(row.attack.ratio.value - expected) <= 4 * row.attack.ratio.error
    assert row.verdict() == "holds; attack falls short"
    assert row.broken() == ()


def test_an_attack_that_diverged_falls_short() -> None:
    bed = bed_of()
    best = Known(lambda z: rounded(bed).reconstruct(z).float(), diverged=True)
    assert measure("smooth", bed, attack=best, sizes=SMALL, runtime=runtime()).verdict() == "holds; attack falls short"


def row_of(ratio: float = 1.02, mse: float = 2.04, **changes: object) -> Calibration:
    figures = Figures(
        dim=4,
        sigma=0.5,
        entropy=Estimate(6.0),
        feature_entropy=Estimate(4.0),
        information=Estimate(2.0, 0.01),
        rate=2.1,
        conditional_entropy=Estimate(4.0, 0.01),
        bound=Estimate(1.5, 0.01),
        mmse=Estimate(2.0, 0.01),
        linear_mse=2.5,
        prior_variance=3.0,
    )
    attacked = Attacked(Estimate(mse, 0.02), Estimate(ratio, 0.001), False)
    return Calibration("toy", replace(figures, **changes), Estimate(2.01, 0.02), attacked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "broken"),
    [
        (row_of(), ()),
        (row_of(ratio=0.997), ()),
        (row_of(ratio=0.995), ("best ≤ attack",)),
        (row_of(mse=1.92), ()),
        (row_of(mse=1.9), ("mmse ≤ attack",)),
        (row_of(rate=1.97), ()),
        (row_of(rate=1.95), ("information ≤ rate",)),
        (row_of(bound=Estimate(2.05, 0.01)), ()),
        (row_of(bound=Estimate(2.06, 0.01)), ("bound ≤ mmse",)),
        (row_of(mmse=Estimate(1.9, 0.01)), ("mmse = measured",)),
        (row_of(mmse=Estimate(2.12, 0.01), mse=2.2), ("mmse = measured",)),
        (row_of(linear_mse=1.95), ("mmse ≤ linear mmse",)),
        (row_of(prior_variance=2.4), ("linear mmse ≤ prior variance",)),
        (row_of(ratio=float("nan")), ("best ≤ attack",)),
    ],
)
def test_what_is_broken_beyond_four_standard_errors(row: Calibration, broken: tuple[str, ...]) -> None:
    assert row.broken() == broken
    assert row.verdict().startswith("broken: " + ", ".join(broken) if broken else "holds")


@pytest.mark.parametrize(("ratio", "verdict"), [(1.03, "holds"), (1.0301, "holds; attack falls short")])
def test_near_is_three_per_cent(ratio: float, verdict: str) -> None:
    assert NEAR == 0.03
    assert row_of(ratio=ratio).verdict() == verdict


@pytest.mark.parametrize(
    ("mine", "club", "verdict"),
    [
        (1.9, 2.5, "holds"),
        (2.05, 2.5, "holds"),
        (2.1, 2.5, "holds; MINE goes too far"),
        (1.9, 1.95, "holds"),
        (1.9, 1.9, "holds; CLUB falls short"),
    ],
)
def test_the_bracket_is_judged_within_four_standard_errors(mine: float, club: float, verdict: str) -> None:
    """On the wrong side of the information, they break no theorem."""
    row = replace(row_of(), bracket=Bracket(Estimate(mine, 0.01), Estimate(club, 0.01), 3.0))
    assert row.verdict() == verdict
    fallen = replace(row, attack=replace(row.attack, diverged=True))
    assert fallen.verdict() == verdict.replace("holds", "holds; attack falls short", 1)


def test_mine_and_club_see_the_pixels_and_what_is_sent() -> None:
    """With next to nothing sent there is next to nothing to find; with much, more."""
    found = [
        measure("smooth", bed_of("smooth", sigma), attack=None, sizes=SMALL, fitting=SHORT, runtime=runtime()).bracket
        for sigma in (100.0, 0.03)
    ]
    assert measure("smooth", bed_of(), attack=None, sizes=SMALL, runtime=runtime()).bracket is None
    assert found[0] is not None
    assert found[1] is not None
    for little, much in ((found[0].mine, found[1].mine), (found[0].club, found[1].club)):
        assert abs(little.value) < 0.2 < 0.5 < much.value
    # Means of 2×2 pixels: the variance of each, and their noise by the law of the bed.
    bed = bed_of("smooth", 0.03)
    assert isinstance(bed, LinearGaussian)
    clean = float((bed.channel.weight @ bed.covariance @ bed.channel.weight.T).trace())
    assert found[1].club_limit == pytest.approx(clean / 0.03**2, rel=0.1)
    assert found[0].club_limit < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth", "patches", "moods"])
def test_mine_and_club_bracket_the_information_of_a_standard_bed(name: str) -> None:
    """Not so on ``white``, whose 144 independent pixels are too many for CLUB's network."""
    row = measure(name, bed_of(name), attack=None, fitting=CALIBRATION_FITTING, runtime=runtime())
    assert row.bracket is not None
    assert row.verdict() == "holds"
    information = row.figures.information.value
    assert 0.25 * information < row.bracket.mine.value < information < row.bracket.club.value


def test_an_attack_that_cannot_work_is_refused_first() -> None:
    bed = STANDARD_BEDS["white"].build(0.1)
    long = replace(bed.channel, feature_shape=(1, 24, 6))
    assert isinstance(bed, LinearGaussian)
    with pytest.raises(InputError, match="feature shape"):
        measure("white", replace(bed, channel=long), sizes=SMALL, runtime=runtime())


def test_what_the_attack_may_use() -> None:
    seen = []

    @dataclass(frozen=True)
    class Asked(Known):
        def run(self, target: BlackBox, *given: object, **options: object) -> Learned:  # type: ignore[override]
            seen.append((target.threat_model, isinstance(target, GrayBox), isinstance(target, WhiteBox)))
            return Learned(self.invert, {})

    bed = bed_of()
    best = Asked(lambda z: rounded(bed).reconstruct(z).float())
    for threat_model in THREAT_MODELS:
        row = measure("smooth", bed, attack=best, sizes=SMALL, threat_model=threat_model, runtime=runtime())
        assert row.attack is not None
        assert row.attack.ratio.value == pytest.approx(1, abs=1e-4)
    assert seen == [("white-box", True, True), ("gray-box", True, False), ("black-box", False, False)]
    with pytest.raises(InputError, match="threat_model"):
        measure("smooth", bed, attack=best, sizes=SMALL, threat_model="glass", runtime=runtime())  # type: ignore[arg-type]


def test_it_can_be_stopped() -> None:
    with pytest.raises(Interrupted):
        measure("smooth", bed_of(), sizes=SMALL, runtime=replace(runtime(), should_stop=lambda: True))


def test_progress_names_bed_and_noise() -> None:
    class Heard:
        titles: ClassVar[list[str]] = []

        def start(self, title: str, total: int, done: int = 0) -> None:
            self.titles.append(title)

        def advance(self, steps: int = 1) -> None: ...

        def note(self, text: str) -> None: ...

        def finish(self) -> None: ...

    quick = DecoderAttack(depth=0, width=2, epochs=1, batch_size=64)
    measure("smooth", bed_of(), attack=quick, sizes=SMALL, runtime=replace(runtime(), progress=Heard()))
    assert Heard.titles == ["smooth, σ = 0.1 (decoder)"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sigma"), [("white", 0.1), ("moods", 0.03)])
def test_the_decoder_attack_finds_the_minimum(name: str, sigma: float) -> None:
    """The heart of it: trained through the real pipeline, within 3 % of the exact mmse, and never below."""
    row = measure(name, bed_of(name, sigma), attack=CALIBRATION_ATTACK, runtime=runtime())
    assert row.attack is not None
    assert row.broken() == ()
    assert 1 - 4 * row.attack.ratio.error <= row.attack.ratio.value <= 1.03
    assert row.attack.mse.value == pytest.approx(row.figures.mmse.value, rel=0.04)
    if name == "moods":
        assert row.attack.mse.value < 0.95 * row.figures.linear_mse, "better than any linear reconstruction"
