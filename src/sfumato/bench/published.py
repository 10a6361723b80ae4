"""The figures that the papers print, to stand beside one's own."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Literal

PaperName = Literal["cem", "gated-attention"]


@dataclass(frozen=True)
class Paper:
    """Where figures were printed.

    Args:
        citation: Who, what, where.
        note: What one should know before comparing with any of them.
        notes: Likewise for single data sets, by their names in the packaged figures.
    """

    citation: str
    note: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    def note_on(self, dataset: str | None) -> str:
        """What one should know before comparing with the figures of a data set; empty without one."""
        if dataset is None:
            return ""
        return f"{self.note} {self.notes.get(dataset, '')}".strip()


PAPERS: Mapping[PaperName, Paper] = MappingProxyType(
    {
        "cem": Paper(
            "Xia et al., Theoretical Insights in Model Inversion Robustness and Conditional Entropy Maximization for "
            "Collaborative Inference Systems, CVPR 2025",
            "Figures as printed.",
            MappingProxyType(
                {
                    "cifar100": "In CIFAR-100's last row the two attacks' PSNRs do not fit their MSEs; they seem to be "
                    "exchanged."
                }
            ),
        ),
        "gated-attention": Paper(
            "Zhang, Investigation of Defense Mechanisms against Model Inversion Attacks (project proposal), University "
            "of Nottingham Ningbo China, 2025",
        ),
    }
)

ATTACKS = ("decoder", "gan")
"""The attacks that the papers' tables have figures of."""


@functools.cache
def figures(paper: PaperName, dataset: str, attack: str) -> Mapping[str, Mapping[str, float]]:
    """What a paper prints of one data set and one attack.

    Args:
        paper: One of :data:`PAPERS`.
        dataset: As the packaged file names it: ``cifar10``, ``cifar100``, ``tinyimagenet`` or ``facescrub``.
        attack: An attack's name; for one that the paper did not run there is the accuracy alone.

    Returns:
        The paper's name of a row to its figures, keyed like :data:`~sfumato.bench.aggregate.FIGURES`: ``accuracy`` as
        a fraction, ``mse_train``, ``mse_test``, ``ssim`` and ``psnr`` (both on test images), as far as printed.
    """
    found: dict[str, Mapping[str, float]] = {}
    text = (resources.files("sfumato.bench") / "published" / f"{paper}.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        if row["dataset"] != dataset:
            continue
        figures = {"accuracy": round(float(row["accuracy"]) / 100, 6)}
        for key in ("mse_train", "mse_test", "ssim", "psnr"):
            if printed := row.get(f"{attack}_{key}"):
                figures[key] = float(printed)
        found[row["defense"]] = MappingProxyType(figures)
    return MappingProxyType(found)
