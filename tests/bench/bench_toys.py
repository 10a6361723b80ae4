"""Experiments and cards without training."""

from __future__ import annotations

import base64
import copy
import io
from typing import Any

import numpy as np
from PIL import Image

from sfumato.audit import Card
from sfumato.bench import Job
from sfumato.storage import hash_of

DIGITS: dict[str, Any] = {
    "name": "digits-trial",
    "title": "Digits, a trial",
    "description": "Whether noise helps.",
    "sizes": {
        "small": {
            "data": {"source": "digits", "train_limit": 300, "test": 0.3},
            "model": {"backbone": "cnn", "width": 0.06},
            "training": {"epochs": 2, "batch_size": 32, "schedule": "one_cycle", "augment": "none", "select_from": 0.0},
            "attacks": [{"attack": "decoder", "depth": 0, "width": 4, "epochs": 1, "batch_size": 32}],
            "evaluation": {"victims": 12},
            "seeds": [0, 1],
        },
    },
    "rows": [
        {"label": "none", "defense": "none"},
        {"label": "noise", "defense": "noise", "over": "none"},
    ],
}


def told(**changes: Any) -> dict[str, Any]:
    """The trial as plain data of one's own, with fields changed."""
    return copy.deepcopy(DIGITS) | changes


SWEPT = told(
    rows=[
        {"label": "noise", "defense": {"recipe": "cem", "weight": 0}},
        {"label": "noise+CEM", "defense": "cem", "over": "noise"},
        {"label": "none", "defense": "none", "varied": False},
    ],
    vary={"field": "sigma", "symbol": "σ", "values": {"small": [0.05, 0.2, 0.5]}},
    theory="cem_rate_nats",
    plots=["accuracy_mse", "entropy_mse"],
)


def png(value: int) -> str:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def attack(name: str, mse: float, ssim: float = 0.5, psnr: float | None = 18.0, first: int = 0) -> dict[str, Any]:
    example = {"label": "0", "mse": mse, "ssim": ssim, "original": png(200), "reconstruction": png(100)}
    return {
        "attack": {"name": name, "arguments": {}},
        "kind": name,
        "threat_model": "white-box",
        "trained_on": "train",
        "queries": 10,
        "train": {"mse": mse / 2, "psnr": psnr, "ssim": ssim},
        "test": {"mse": mse, "psnr": psnr, "ssim": ssim},
        "test_mse": [mse],
        "test_ssim": [ssim],
        "examples": [example | {"rank": "fixed", "index": first + i} for i in range(3)],
    }


def card(
    job: Job,
    accuracy: float,
    mse: float,
    *,
    attacks: list[dict[str, Any]] | None = None,
    theory: dict[str, float] | None = None,
    suspicions: tuple[str, ...] = (),
    seconds: float = 30.0,
    first: int = 0,
    cost: int = 1,
    run: str | None = None,
) -> Card:
    quality = {"mse": 0.06, "psnr": 12.0, "ssim": 0.2}
    return Card.model_validate(
        {
            "run": f"train-{hash_of([job.row, job.point, job.seed] if run is None else run)}",
            "defense": {"label": job.label, "parts": [{"name": "noise", "arguments": {"sigma": 0.5}}]},
            "data": {
                "source": "digits", "checksum": "a" * 64, "image_shape": (3, 4, 4), "classes": ["0", "1"],
                "train": 1000, "validation": 100, "test": 200, "auxiliary": 0,
            },
            "model": {"backbone": "cnn", "width": 0.06, "cut": "block2", "feature_shape": (8, 1, 1)},
            "training": {"arguments": {}, "seed": job.seed, "epochs_run": 2, "epoch_kept": 1, "losses": {}},
            "utility": {"train_accuracy": 1.0, "validation_accuracy": accuracy, "test_accuracy": accuracy},
            "cost": {
                "edge_parameters": cost, "edge_macs": 1, "cloud_parameters": 1, "cloud_macs": 2, "payload_bytes": 3,
            },
            "theory": theory or {},
            "mean_image": quality,
            "attacks": attacks or [attack("decoder", mse, first=first)],
            "worst_case": {"mse": mse, "ssim": 0.5},
            "suspicions": [{"code": code, "message": "Beware."} for code in suspicions],
            "timing": {
                "finished": "2025-01-02T03:04:05+00:00", "train_seconds": seconds, "attack_seconds": 0.0,
                "edge_latency_ms": 1.0, "cloud_latency_ms": 1.0,
            },
            "environment": {
                "sfumato": "0.1.0", "torch": "2.9.0", "python": "3.11.2", "platform": "Linux", "device": "cpu",
                "threads": 2,
            },
        }
    )  # fmt: skip
