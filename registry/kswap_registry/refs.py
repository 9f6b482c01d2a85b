"""References such as 'faces', 'faces@2', 'faces@base', 'faces@-1', 'faces@tag' and what they name."""

from __future__ import annotations

from .database import Database, Row
from .errors import UnknownModel, UnknownVersion

MAIN = "main"
"""The branch every model starts with; 'faces@head' is its head."""


def split(reference: str) -> tuple[str, str]:
    """A reference as model name and selector; without '@' the selector is 'head'."""
    name, separator, selector = reference.partition("@")
    return name, selector if separator else "head"


def model_row(database: Database, name: str) -> int:
    """The row id of a model."""
    found = database.value("SELECT id FROM models WHERE name = ?", name)
    if found is None:
        raise UnknownModel(name, [row["name"] for row in database.rows("SELECT name FROM models")])
    return int(found)


def number(database: Database, reference: str) -> tuple[int, int]:
    """The model's row id and the version number a reference names."""
    name, selector = split(reference)
    model = model_row(database, name)
    found = _select(database, model, selector)
    if found is None:
        raise UnknownVersion(reference, known(database, model, name))
    return model, found


def head(database: Database, model: int, branch: str = MAIN) -> int:
    """The number of the version a branch is at."""
    found = branch_head(database, model, branch)
    if found is None:
        name = database.value("SELECT name FROM models WHERE id = ?", model)
        raise UnknownVersion(f"{name}@{branch}", known(database, model, name))
    return found


def branch_head(database: Database, model: int, branch: str) -> int | None:
    """The number a branch is at, if there is such a branch."""
    found = database.value("SELECT head FROM branches WHERE model = ? AND name = ?", model, branch)
    return None if found is None else int(found)


def exists(database: Database, model: int, number: int) -> bool:
    """Whether a model has a version of this number."""
    found = database.value("SELECT 1 FROM versions WHERE model = ? AND number = ?", model, number)
    return found is not None


def tagged(database: Database, model: int, name: str) -> int | None:
    """The number a tag stands at, if there is such a tag."""
    found = database.value("SELECT number FROM tags WHERE model = ? AND name = ?", model, name)
    return None if found is None else int(found)


def known(database: Database, model: int, name: str) -> str:
    """The versions, branches and tags of a model, in a few words."""
    last = database.value("SELECT max(number) FROM versions WHERE model = ?", model)
    tags = database.rows("SELECT name FROM tags WHERE model = ? ORDER BY name", model)
    branches = database.rows("SELECT name FROM branches WHERE model = ? AND name <> ? ORDER BY name", model, MAIN)
    numbers = {0: "", 1: f", {name}@1"}.get(last, f", {name}@1 .. {name}@{last}")
    return f"{name}@base{numbers}{_listed('tags', tags)}{_listed('branches', branches)}"


def _listed(what: str, rows: list[Row]) -> str:
    return f"; {what} {', '.join(row['name'] for row in rows)}" if rows else ""


def _select(database: Database, model: int, selector: str) -> int | None:
    if selector == "head":
        return head(database, model)
    if selector == "base":
        return 0
    if _is_number(selector.removeprefix("-")):
        value = int(selector)
        return _back(database, model, -value) if selector[0] == "-" else _exact(database, model, value)
    at_tag = tagged(database, model, selector)
    return branch_head(database, model, selector) if at_tag is None else at_tag


def _is_number(selector: str) -> bool:
    return selector.isascii() and selector.isdigit() and len(selector) <= 15  # more would not fit SQLite


def _exact(database: Database, model: int, value: int) -> int | None:
    return value if exists(database, model, value) else None


def _back(database: Database, model: int, steps: int) -> int | None:
    found = database.value(_ANCESTOR, head(database, model), model, steps, steps)
    return None if found is None else int(found)


_ANCESTOR = """
WITH RECURSIVE line (number, step) AS (
    VALUES (?, 0)
    UNION ALL
    SELECT versions.parent, step + 1 FROM line
    JOIN versions ON versions.model = ? AND versions.number = line.number
    WHERE versions.parent IS NOT NULL AND step < ?
)
SELECT number FROM line WHERE step = ?"""
