"""The order of the folders: lower ones never import higher ones, and a few things nobody imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "sfumato"
# From low to high; CONTRIBUTING.md shows the same line.
ORDER = (
    *("errors", "storage", "arguments", "progress", "information", "data", "models", "metrics"),
    *("defenses", "training", "attacks", "audit", "report", "bench", "cli"),
)
MODULES = sorted(SRC.rglob("*.py"))
OURS = [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def name_of(path: Path) -> str:
    """First part of a module's name inside the package; empty for the package itself."""
    first = path.relative_to(SRC).parts[0]
    return "cli" if first == "__main__.py" else "" if first == "__init__.py" else first.removesuffix(".py")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names of everything imported anywhere in a module, functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute access, empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def of_sfumato(path: Path) -> set[str]:
    """The folders and files of the package that a module imports."""
    parts = [name.split(".") for name in imported(parsed(path)) if name.split(".")[0] == "sfumato"]
    return {name[1] for name in parts if len(name) > 1 and not name[1].startswith("__")}


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_folder_has_its_place_in_the_order():
    assert {name_of(path) for path in MODULES} - {""} == set(ORDER)


def test_contributing_shows_the_order():
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    assert " < ".join(ORDER) in text


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_lower_folders_never_import_higher_ones(path):
    own = name_of(path)
    rank = ORDER.index(own) if own else -1
    higher = {name for name in of_sfumato(path) if name != own and (name not in ORDER or ORDER.index(name) > rank)}
    assert not higher, f"{shown(path)} imports {', '.join(sorted(higher))}, which stand above it"


def test_nothing_imports_torchvision():
    guilty = [
        shown(path) for path in OURS if any(name.split(".")[0] == "torchvision" for name in imported(parsed(path)))
    ]
    assert not guilty


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_no_global_seed(path):
    calls = {dotted(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)}
    seeds = {
        *("torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.random.seed", "random.seed"),
        *("torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "np.random.seed", "numpy.random.seed"),
    }
    assert not calls & seeds


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_no_pickle(path):
    tree = parsed(path)
    picklers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert not {name.split(".")[0] for name in imported(tree)} & picklers
    calls = {dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    # These three pickle behind a friendly name.
    assert not calls & {"torch.load", "torch.save", "torch.jit.load"}


def test_every_folder_says_what_it_is():
    folders = {path.parent for path in MODULES}
    assert not [shown(folder) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not [shown(folder) for folder in folders if not ast.get_docstring(parsed(folder / "__init__.py"))]
