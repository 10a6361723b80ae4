"""What all tests share: tiny settings, and a folder of their own for caches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

_THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
TINY = {
    "data": {"source": "digits", "train_limit": 300, "test": 0.3},
    "model": {"backbone": "cnn", "width": 0.06},
    "training": {"epochs": 2, "batch_size": 32, "schedule": "one_cycle", "augment": "none", "select_from": 0.0},
    "defenses": ["none", "cem"],
    "attacks": [{"attack": "decoder", "depth": 0, "width": 4, "epochs": 2, "batch_size": 32}],
    "evaluation": {"victims": 24},
}


@pytest.fixture(scope="session")
def tiny_settings():
    """Settings of an audit that takes a second."""
    return TINY


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _own_number_of_threads():
    # What a test or a library changed of it would change the last bits of sums: a test that compares this process with
    # another one needs the number that the other one starts with.
    torch.set_num_threads(_THREADS)


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real images beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs real images in ../shared/data")
    return folder
