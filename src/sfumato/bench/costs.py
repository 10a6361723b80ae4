"""What the two halves of each row's models cost: that of a pruned edge differs from seed to seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sfumato.audit import Card
from sfumato.bench.expansion import Job

COSTS: Mapping[str, str] = {
    "edge_parameters": "edge parameters",
    "edge_macs": "edge MACs",
    "payload_bytes": "payload (bytes)",
    "cloud_parameters": "cloud parameters",
    "cloud_macs": "cloud MACs",
}
"""Name in a card to name for people; for one image."""


def costs(jobs: Sequence[Job], cards: Mapping[str, Card]) -> dict[str, dict[str, tuple[int, int]]]:
    """Each row's cost over all its cards: figure's name to least and most. Without rows that have no card."""
    rows: dict[str, list[Card]] = {}
    for job in jobs:
        if job.key in cards:
            rows.setdefault(job.row, []).append(cards[job.key])
    return {
        row: {name: _range([getattr(card.cost, name) for card in found]) for name in COSTS}
        for row, found in rows.items()
    }


def _range(values: Sequence[int]) -> tuple[int, int]:
    return min(values), max(values)
