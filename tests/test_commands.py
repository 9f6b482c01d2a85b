"""Every command, as it says of itself; and that the light ones need no torch."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main

from kswapctl.cli import app

GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)  # type: ignore[attr-defined]

WITHOUT_TORCH = [
    "--help",
    "--version",
    "list",
    "list digits --json",
    "log",
    "show digits",
    "show digits@2",
    "tag digits@1 early",
    "models",
    "rollback digits --to base",
    "rollback digits --to 2",
]


def options_of(name: str) -> dict[str, object]:
    return {o: p for p in GROUP.commands[name].params for o in p.opts}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_and_shows_an_example(name: str, invoke) -> None:
    ran = invoke(None, name, "--help")
    assert ran.code == 0
    assert "Usage:" in ran.out
    assert f"kswapctl {name}" in ran.out.partition("Example")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_uses_only_options_it_has(name: str) -> None:
    text = GROUP.commands[name].help or ""  # type: ignore[attr-defined]
    used = set(re.findall(r"(?<!\w)--?[a-z][a-z0-9-]*", " ".join(re.findall(r"`(kswapctl [^`]*)`", text))))
    assert used <= set(options_of(name))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_answer_in_json(name: str) -> None:
    assert "--json" in options_of(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    assert not [o for o, p in options_of(name).items() if o.startswith("--") and not getattr(p, "help", None)]


def test_the_help_lists_every_command(invoke) -> None:
    out = invoke(None, "--help").out
    assert [c for c in COMMANDS if f" {c} " not in out] == []


def test_no_command_at_all_shows_the_help(invoke) -> None:
    ran = invoke(None)
    assert "Usage:" in ran.out + ran.err
    assert ran.code in {0, 2}


@pytest.mark.parametrize("line", ["nonsense", "list --nonsense", "rollback", "learn digits", "tag digits"])
def test_a_wrong_command_line_is_a_usage_error(look, line: str) -> None:
    ran = look(*line.split())
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert ran.err.strip()


def child(home: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env=os.environ | {"KSWAP_HOME": str(home), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )


MAIN = "from kswapctl.cli import main; main()"
HEAVY = ("torch", "timm", "peft", "torchvision", "onnx", "onnxruntime", "sklearn", "matplotlib", "datasets")
BLOCKED = """
import sys
for name in {heavy}: sys.modules[name] = None
from kswapctl.cli import app
for line in sys.argv[1:]:
    try:
        app(line.split(), standalone_mode=False)
    except SystemExit as end:
        if end.code: sys.exit(f"{{line}}: exit {{end.code}}")
"""


def test_looking_and_undoing_need_no_torch(home: Path) -> None:
    done = child(home, BLOCKED.format(heavy=HEAVY), *WITHOUT_TORCH)
    assert done.returncode == 0, done.stderr
    assert "digits@2" in done.stdout


def test_looking_and_undoing_need_no_pydantic(home: Path) -> None:
    done = child(home, BLOCKED.format(heavy=("pydantic",)), *WITHOUT_TORCH[2:], "list --limit 3", "doctor", "gc")
    assert done.returncode == 0, done.stderr


def test_what_needs_torch_does_not_work_without() -> None:
    done = child(Path("."), BLOCKED.format(heavy=HEAVY), "methods")
    assert done.returncode != 0
    assert "torch" in done.stderr


def test_the_help_is_there_at_once() -> None:
    def seconds() -> float:
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", MAIN, "--help"], check=True, capture_output=True)
        return time.monotonic() - start

    tolerated = 2.0  # the promise is one second; a busy machine may take twice as long
    assert sorted(seconds() for _ in range(3))[1] < tolerated


def test_a_broken_pipe_ends_in_silence(trained_home: Path) -> None:
    script = f"{sys.executable} -c '{MAIN}' log --json | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"KSWAP_HOME": str(trained_home)}, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "141"}
