"""The house's own rules: layers, types, lint, and what a command may import."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def check(*command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_rooms_import_only_what_stands_before_them():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "0 broken" in done.stdout, done.stdout + done.stderr


def test_lint_finds_nothing():
    check("ruff", "check", "--no-cache", ".")


def test_code_is_formatted():
    check("ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.timeout(600)
def test_types_hold():
    check("mypy")


def test_no_file_grows_into_a_second_idea():
    long = {
        str(path.relative_to(ROOT)): lines
        for package in ("kswapctl", "registry")
        for path in (ROOT / package).rglob("*.py")
        if (lines := path.read_text().count("\n")) > 350
    }
    assert not long


def test_the_docs_build_without_a_warning(tmp_path):
    check("mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path))
