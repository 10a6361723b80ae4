"""What a package says it exports is there."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import sfumato

PACKAGES = ["sfumato", *(m.name for m in pkgutil.walk_packages(sfumato.__path__, "sfumato.") if m.ispkg)]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_exported_name_exists(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert [each for each in exported if not hasattr(module, each)] == []
    assert len(set(exported)) == len(exported)
