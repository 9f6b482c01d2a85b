"""The docs tell the truth: the command reference is current, links resolve, snippets compile, the example works."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
ADDRESS = re.compile(r"https?:|mailto:")


def snippets(page: Path, language: str) -> list[str]:
    return [text for tongue, text in FENCE.findall(page.read_text()) if tongue == language]


def commands() -> dict[str, Any]:
    import typer.main

    from kswapctl.cli import app

    return dict(typer.main.get_group(app).commands)


def anchors(page: Path) -> set[str]:
    """Headings as links name them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_command_reference_is_current() -> None:
    from typer.cli import app
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["kswapctl.cli", "utils", "docs", "--name", "kswapctl"])
    assert result.exit_code == 0, result.output
    written = (ROOT / "docs" / "cli.md").read_text()
    assert result.stdout.strip() == written.strip(), (
        "run: uv run typer kswapctl.cli utils docs --name kswapctl --output docs/cli.md"
    )


def test_every_command_stands_in_the_reference_with_an_example() -> None:
    sections = (ROOT / "docs" / "cli.md").read_text().split("\n## ")
    for name in commands():
        section = next((s for s in sections if s.startswith(f"`kswapctl {name}`")), "")
        assert f"Example: `kswapctl {name}" in section, name


def test_every_command_stands_in_the_guide() -> None:
    guide = "".join(page.read_text() for page in PAGES if page.name != "cli.md")
    assert [name for name in commands() if f"kswapctl {name}" not in guide] == []


@EVERY_PAGE
def test_command_lines_name_commands_and_options_that_exist(page: Path) -> None:
    known = commands()
    lines = [line for text in snippets(page, "console") for line in text.splitlines()]
    for line in (line for line in lines if "kswapctl " in line and page.name != "cli.md"):
        words = line.split("kswapctl ", 1)[1].split()
        assert words[0] in known, line
        options = {option for p in known[words[0]].params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= options, line


@EVERY_PAGE
def test_internal_links_resolve(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if ADDRESS.match(link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@EVERY_PAGE
def test_python_snippets_compile(page: Path) -> None:
    for number, text in enumerate(snippets(page, "python")):
        compile(text, f"{page.name}, snippet {number}", "exec")


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation, page.name


def test_every_case_of_the_catalogue_stands_in_the_docs_with_a_test_that_exists() -> None:
    lines = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if re.match(r"\| \d", line)]
    numbers = [re.match(r"\| ((?:\d+, )*\d+) ", line) for line in lines]
    found = [int(number) for match in numbers if match for number in match[1].split(", ")]
    assert found == list(range(1, 79))
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for line in lines:
        named = re.findall(r"`(test_\w+)`", line)
        assert named or "does not apply" in line, line
        assert [name for name in named if f"def {name}(" not in tests] == []


def test_every_exit_code_stands_in_the_docs() -> None:
    import kswap_registry.errors

    import kswapctl.errors

    written = (ROOT / "docs" / "exit-codes.md").read_text()
    modules = (kswap_registry.errors, kswapctl.errors)
    codes = {error.exit_code for module in modules for error in vars(module).values() if hasattr(error, "exit_code")}
    assert [code for code in sorted(codes) if f"| {code} |" not in written] == []


def test_every_dependency_is_explained() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    written = (ROOT / "docs" / "dependencies.md").read_text()
    names = [re.split(r"[<>=\[]", requirement)[0] for requirement in project["dependencies"]]
    assert [name for name in names if f"| {name} |" not in written] == []


def test_the_example_method_works(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from kswapctl.methods import METHODS, Seen, find_method
    from kswapctl.tasks import TASKS

    module = types.ModuleType("kswapctl.methods.relabel")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(compile(snippets(ROOT / "docs" / "methods.md", "python")[0], "methods.md", "exec"), vars(module))
    monkeypatch.setitem(METHODS, "relabel", (module.Forget,))

    method = find_method("relabel", "forget").configure("gentle", {"steps": "3"})
    logits = torch.tensor([[0.0, 2.0, 9.0], [1.0, 0.0, 9.0]])
    rows = torch.tensor([2])
    seen = Seen(torch.tensor([2, 2]), logits, logits, logits, logits)
    context = types.SimpleNamespace(task=TASKS["classification"], rows=rows)
    losses = method.loss(context, {"retain": seen, "forget": seen})

    assert dataclasses.asdict(method)["steps"] == 3
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0]))
    assert torch.isclose(losses["forget"], 0.2 * expected)
