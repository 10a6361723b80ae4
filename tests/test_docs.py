"""What the documentation shows is true: its Python runs, its commands are valid, and it names everything registered."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from sfumato import attacks, data, defenses, models
from sfumato.arguments import signature_of
from sfumato.audit import PRESETS, card, load_settings, preset
from sfumato.bench import check_experiment, expand, parse_experiment, read_experiment
from sfumato.cli import app, run
from sfumato.cli.commands import _settings
from sfumato.cli.flags import nested
from sfumato.defenses.recipes import PAIRED
from sfumato.errors import InputError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
SKIPPED = re.compile(r"<!-- not run: .+ -->")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it begins on, whether it is to be run."""

    language: str
    text: str
    line: int
    skipped: bool = False


def blocks_of(text: str) -> list[Block]:
    """All fenced blocks of a page."""
    blocks: list[Block] = []
    fence, language, body, start, before = "", "", [], 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if fence:
            if line.strip() == fence:
                blocks.append(Block(language, "\n".join(body), start, bool(SKIPPED.fullmatch(before))))
                fence, before = "", ""
            else:
                body.append(line)
        elif opening := re.fullmatch(r"(`{3,})([^`]*)", line.strip()):
            (fence, language), body, start = opening.groups(), [], number + 1
        elif line.strip():
            before = line.strip()
    assert not fence, "a fence is not closed"
    return blocks


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a console (after ``$``) or bash block, as words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def shown(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def found(*languages: str) -> list[tuple[Path, Block]]:
    return [
        (page, block)
        for page in PAGES
        for block in blocks_of(page.read_text(encoding="utf-8"))
        if block.language in languages
    ]


PYTHON_PAGES = sorted({page for page, block in found("python") if not block.skipped})
COMMANDS = [
    pytest.param(words, id=f"{shown(page)}:{block.line}: {shlex.join(words)[:60]}")
    for page, block in found("console", "bash")
    for words in commands_of(block)
]
YAML = [pytest.param(block.text, id=f"{shown(page)}:{block.line}") for page, block in found("yaml")]


def test_blocks_are_read_as_meant():
    text = (
        "a\n```python\nx = 1\n```\n<!-- not run: no\n\n<!-- not run: slow -->\n\n```python\ny\n```\n````md\n```\n````"
    )
    assert blocks_of(text) == [
        Block("python", "x = 1", 3),
        Block("python", "y", 10, skipped=True),
        Block("md", "```", 13),
    ]
    bash = Block("bash", "# why\nmake demo  # two minutes\nsfumato audit \\\n  --seed 1", 1)
    assert commands_of(bash) == [["make", "demo"], ["sfumato", "audit", "--seed", "1"]]
    assert commands_of(Block("console", "$ sfumato list\nname  what", 1)) == [["sfumato", "list"]]


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON_PAGES, ids=shown)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A module of its own, registered, so that type hints written as text can be looked up.
    module = types.ModuleType("_" + re.sub(r"\W", "_", shown(page)))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.language == "python" and not block.skipped:
            # Empty lines before, so that a traceback names the line of the page.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
            exec(code, module.__dict__)


def check_call(words):
    """What a call of sfumato does before it computes or opens anything; its flags are text until then."""
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    given = bound.arguments
    command, told = next(iter(words), None), nested(given)
    if command in ("audit", "train"):
        if "config" in given:  # the user's own
            given["config"].write_text("", encoding="utf-8")
        _settings(given.get("preset"), given.get("config"), told)
    elif command in ("attack", "report"):
        load_settings([told], whole=False)
    elif command == "bench" and "experiment" in given:
        expand(
            read_experiment(given["experiment"]),
            given.get("size", "small"),
            seeds=given.get("seeds"),
            only=given.get("only", ()),
        )
    elif command == "list":
        assert run(words) == 0


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_say_what_there_is(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0] == "sfumato":
        check_call(words[1:])
    else:
        assert words[0] in {"pip", "python", "python3", "git", "cd", "pytest", "pre-commit", "source", "."}


@pytest.mark.parametrize(
    "call",
    [
        "audit --preset nonsense",
        "audit --config mine.yaml --training.augment nonsense",
        "train --defenses nonsense",
        "audit --fail-if nonsense",
        "attack runs/train-0 --attacks nonsense",
        "report cards --fail-if nonsense",
        "bench nonsense",
        "bench cem-figure-3 --only nonsense",
    ],
)
def test_a_command_that_says_what_there_is_not_would_be_noticed(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="nonsense"):
        check_call(call.split())


@pytest.mark.parametrize("text", YAML)
def test_settings_are_valid(text):
    content = yaml.safe_load(text)
    if "rows" in content:
        check_experiment(parse_experiment(content))
    else:
        load_settings([content])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_documented(name):
    load_settings([preset(name)])
    assert f"`{name}`" in (DOCS / "command-line.md").read_text(encoding="utf-8")


# A method with a surrogate is documented by the rows of the two.
PAIRS = {f"{base}_{kind}" for base in PAIRED for kind in defenses.SURROGATES}
REGISTERED = [
    *(("defenses.md", name, part) for name, part in defenses.PARTS.items()),
    *(("defenses.md", name, recipe.build) for name, recipe in defenses.RECIPES.items() if name not in PAIRS),
    *(("attacks.md", name, attack) for name, attack in attacks.ATTACKS.items()),
    *(("models.md", name, None) for name in models.BACKBONES),
    *(("data.md", name, None) for name in data.PRESETS),
]


@pytest.mark.parametrize(
    ("page", "name", "build"), REGISTERED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_everything_registered_is_documented(page, name, build):
    text = (DOCS / page).read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
    assert rows, f"docs/{page} needs a row that begins with | `{name}`"
    arguments = signature_of(build) if build else {}
    if page == "attacks.md":  # what all attacks take is told once
        common = {field.name for field in dataclasses.fields(attacks.Attack)}
        assert all(f"\n| `{name}={arguments.pop(name)[1]}`" in text for name in common)
    for argument, (_, default) in arguments.items():
        text = f"`{argument}={default}`"
        assert any(text in row for row in rows), f"docs/{page}, {name}: {text} is missing or has another default"


def test_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    examples = {f"src/sfumato/{name}.py" for name in ("defenses/rounding", "attacks/feature/nearest", "models/tiny")}
    named = set(re.findall(r"`((?:src|tests|docs)/[\w/]+\.\w+)`", text))
    assert named
    assert not [name for name in sorted(named - examples) if not (ROOT / name).is_file()]


def test_every_field_of_a_card_is_documented():
    text = (DOCS / "cards.md").read_text(encoding="utf-8")
    sections = [kind for kind in vars(card).values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
    for kind in (kind for kind in sections if kind.__module__ == card.__name__ and not kind.__name__.startswith("_")):
        _, _, rest = text.partition(f"\n### {kind.__name__}\n")
        own = rest.partition("\n##")[0]
        assert re.findall(r"^\| `(\w+)`", own, re.MULTILINE) == list(kind.model_fields), kind.__name__
        for name, field in kind.model_fields.items():
            assert (field.description or "") in own, f"{kind.__name__}.{name}"


def test_every_public_module_has_a_reference_page():
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    package = ROOT / "src" / "sfumato"
    names = {path.parent.name if path.name == "__init__.py" else path.stem for path in package.glob("*/__init__.py")}
    names |= {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    missing = [name for name in sorted(names) if f"automodule:: sfumato.{name}\n" not in text]
    assert not missing
