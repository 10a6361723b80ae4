from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

from sfumato.audit.card import Card

SIZE = 32
MakeCard = Callable[..., Card]


@functools.cache
def _digit(index: int, blur: float) -> str:
    pixels = (load_digits().images[index] / 16 * 255).astype(np.uint8)
    image = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _quality(mse: float, ssim: float) -> dict[str, Any]:
    return {"mse": mse, "psnr": -10 * float(np.log10(mse)) if mse else None, "ssim": ssim}


def _examples(mse: float, ssim: float, first: int, label: str | None) -> list[dict[str, Any]]:
    blur = 0.4 + 5 * (1 - ssim) ** 2
    ranks = (("best", 0.12, 0.7), ("median", 0.0, 1.0), ("worst", -0.15, 1.4), *(("fixed", 0.0, 1.0),) * 8)
    return [
        {
            "rank": rank,
            "index": first + position,
            "label": label or str(load_digits().target[first + position]),
            "mse": mse * factor,
            "ssim": min(0.999, ssim + shift),
            "original": _digit(first + position, 0.0),
            "reconstruction": _digit(first + position, round(blur * factor, 3)),
        }
        for position, (rank, shift, factor) in enumerate(ranks)
    ]


def make_attack(
    name: str = "decoder",
    *,
    mse: float = 0.02,
    ssim: float = 0.6,
    spread: float = 0.05,
    judged: int = 100,
    threat_model: str = "white-box",
    trained_on: str = "train",
    queries: int = 4000,
    first: int = 0,
    label: str | None = None,
    observations: int = 1,
    images: int | None = None,
    test_ssim: list[float] | None = None,
    test_mse: list[float] | None = None,
    identity: float | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """One attack of a card. Per-image figures that are given replace ``judged``, and the means with them."""
    if test_ssim is not None and test_mse is not None:
        ssim, mse = float(np.mean(test_ssim)), float(np.mean(test_mse))
    shifts = np.linspace(-spread, spread, judged)
    return {
        "attack": {"name": name, "arguments": {"observations": observations, "images": images, **arguments}},
        "kind": name.partition(" ")[0],
        "threat_model": threat_model,
        "trained_on": trained_on,
        "queries": queries,
        "images": images,
        "observations": observations,
        "train": _quality(0.8 * mse, min(0.99, ssim + 0.04)),
        "test": _quality(mse, ssim),
        "test_mse": test_mse or [mse] * judged,
        "test_ssim": test_ssim or [float(ssim + shift) for shift in shifts],
        "examples": _examples(mse, ssim, first, label),
        "identity": identity,
    }


def make(
    label: str = "None",
    parts: list[tuple[str, dict[str, Any]]] | None = None,
    *,
    accuracy: float = 0.92,
    attacks: list[dict[str, Any]] | None = None,
    mean: tuple[float, float] = (0.07, 0.25),
    suspicions: list[tuple[str, str]] | None = None,
    seed: int = 0,
    classes: list[str] | None = None,
    checksum: str = "a" * 64,
    judge: tuple[float, float] | None = None,
    **attack: Any,
) -> Card:
    attacks = attacks or [make_attack(**attack)]
    worst = max(each["test"]["ssim"] for each in attacks)
    return Card.model_validate(
        {
            "run": "0123456789abcdef",
            "defense": {
                "label": label,
                "parts": [{"name": n, "arguments": a} for n, a in parts or [("bottleneck", {"channels": 8})]],
            },
            "data": {
                "source": "digits",
                "checksum": checksum,
                "image_shape": (1, SIZE, SIZE),
                "classes": classes or [str(digit) for digit in range(10)],
                "train": 1000,
                "validation": 200,
                "test": 400,
                "auxiliary": 197,
            },
            "model": {"backbone": "vgg11", "width": 0.25, "cut": "block2", "feature_shape": (8, 8, 8)},
            "training": {
                "arguments": {"epochs": 20, "lr": 0.05, "momentum": 0.9},
                "seed": seed,
                "epochs_run": 20,
                "epoch_kept": 18,
                "losses": {"cross_entropy": 0.1234, "rate": None},
            },
            "utility": {
                "train_accuracy": min(1.0, accuracy + 0.03),
                "validation_accuracy": accuracy,
                "test_accuracy": accuracy,
            },
            "cost": {
                "edge_parameters": 85256,
                "edge_macs": 21_900_000,
                "cloud_parameters": 9_689_738,
                "cloud_macs": 133_600_000,
                "payload_bytes": 2048,
            },
            "theory": {"rate_nats": -1.25},
            "mean_image": _quality(*mean),
            "attacks": attacks,
            "worst_case": {"mse": min(each["test"]["mse"] for each in attacks), "ssim": worst},
            "judge": judge and {"run": "train-judge", "seed": 1_000_003, "accuracy": judge[0], "chance": judge[1]},
            "suspicions": [{"code": code, "message": text} for code, text in suspicions or []],
            "timing": {
                "finished": "2025-01-02T03:04:05Z",
                "train_seconds": 120.5,
                "attack_seconds": 60.0,
                "edge_latency_ms": 1.234,
                "cloud_latency_ms": 2.5,
            },
            "environment": {
                "sfumato": "0.1.0",
                "torch": "2.9.0",
                "python": "3.11.2",
                "platform": "Linux",
                "device": "cpu",
                "threads": 2,
            },
        }
    )


def gallery() -> list[Card]:
    """A realistic set: undefended, one that withstands, one in doubt, one not enough, one that fails."""
    noise = ("noise", {"sigma": 0.025})
    bottleneck = ("bottleneck", {"channels": 8})
    decoder = {"blocks": 8, "channels": 64, "epochs": 50}
    rmle = {"threat_model": "white-box", "queries": 0, "steps": 2000, "tv": 0.1}
    generator = {"threat_model": "gray-box", "trained_on": "auxiliary", "epochs": 100}

    def card(label: str, parts: list[tuple[str, dict[str, Any]]], mse: float, ssim: float, **more: Any) -> Card:
        attacks = [
            make_attack("decoder", mse=mse, ssim=ssim, **decoder),
            make_attack("generator", mse=1.3 * mse, ssim=0.9 * ssim, **generator),
            make_attack("rmle", mse=1.8 * mse, ssim=0.7 * ssim, **rmle),
        ]
        return make(label, parts, attacks=attacks, **more)

    worse = (
        "attack_worse_than_mean",
        "The attack rmle is worse than the mean image: it probably did not converge.",
    )
    return [
        card("Undefended", [bottleneck], 0.0031, 0.93, accuracy=0.962),
        card("Noise", [bottleneck, noise], 0.0036, 0.91, accuracy=0.957),
        card("Noise_NoPeek", [bottleneck, noise, ("dcor", {"weight": 0.3})], 0.0125, 0.66, accuracy=0.945),
        card(
            "Noise_ARL",
            [bottleneck, noise, ("adversary", {"weight": 0.5})],
            0.021,
            0.47,
            accuracy=0.921,
            suspicions=[worse, ("vanishing", "The gradients of the adversary vanish from epoch 4.")],
        ),
        card(
            "Noise_ARL + CEM",
            [bottleneck, noise, ("adversary", {"weight": 0.5}), ("cem", {"weight": 16})],
            0.043,
            0.36,
            accuracy=0.951,
        ),
    ]


@pytest.fixture(scope="session")
def card() -> MakeCard:
    return make


@pytest.fixture(scope="session")
def attack() -> Callable[..., dict[str, Any]]:
    return make_attack


@pytest.fixture(scope="session")
def cards() -> list[Card]:
    return gallery()
