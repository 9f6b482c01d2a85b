"""The tables, as SQL: one tuple of statements for each step of the schema.

A step never changes once released: registries were made with it.
"""

from __future__ import annotations

from .digests import ORIGIN


def _never(table: str, event: str, name: str) -> str:
    return f"""CREATE TRIGGER {name} BEFORE {event} ON {table}
BEGIN SELECT RAISE(ABORT, '{table} only grows'); END"""


_MODELS = """CREATE TABLE models (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    task TEXT NOT NULL,
    source TEXT NOT NULL,
    spec TEXT NOT NULL,
    classes TEXT NOT NULL,
    created TEXT NOT NULL,
    digest TEXT NOT NULL,
    head INTEGER NOT NULL
) STRICT"""

_BLOBS = """CREATE TABLE blobs (
    digest TEXT NOT NULL PRIMARY KEY CHECK (length(digest) = 64),
    size INTEGER NOT NULL CHECK (size >= 0)
) STRICT, WITHOUT ROWID"""

# A parent's number is lower than its child's, so the parents cannot form a circle.
_VERSIONS = """CREATE TABLE versions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model INTEGER NOT NULL REFERENCES models (id),
    number INTEGER NOT NULL CHECK (number >= 0),
    parent INTEGER CHECK (parent < number) CHECK ((parent IS NULL) = (number = 0)),
    kind TEXT NOT NULL,
    method TEXT NOT NULL,
    spec TEXT NOT NULL,
    state TEXT NOT NULL,
    adapter TEXT NOT NULL,
    weights TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    note TEXT NOT NULL,
    created TEXT NOT NULL,
    digest TEXT NOT NULL,
    UNIQUE (model, number),
    FOREIGN KEY (model, parent) REFERENCES versions (model, number)
) STRICT"""

_FILES = """CREATE TABLE files (
    version INTEGER NOT NULL REFERENCES versions (id),
    name TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES blobs (digest),
    PRIMARY KEY (version, name)
) STRICT, WITHOUT ROWID"""

_METRICS = """CREATE TABLE metrics (
    version INTEGER NOT NULL REFERENCES versions (id),
    name TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (version, name)
) STRICT, WITHOUT ROWID"""

_TAGS = """CREATE TABLE tags (
    model INTEGER NOT NULL,
    name TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (model, name),
    FOREIGN KEY (model, number) REFERENCES versions (model, number)
) STRICT, WITHOUT ROWID"""

_OPERATIONS = """CREATE TABLE operations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    folder TEXT NOT NULL UNIQUE,
    model INTEGER NOT NULL REFERENCES models (id),
    parent INTEGER NOT NULL,
    kind TEXT NOT NULL,
    method TEXT NOT NULL,
    spec TEXT NOT NULL,
    command TEXT NOT NULL,
    environment TEXT NOT NULL,
    user TEXT NOT NULL,
    owner TEXT NOT NULL,
    started TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed', 'interrupted', 'abandoned')),
    ended TEXT,
    error TEXT,
    version INTEGER,
    FOREIGN KEY (model, parent) REFERENCES versions (model, number),
    FOREIGN KEY (model, version) REFERENCES versions (model, number)
) STRICT"""

_HISTORY = """CREATE TABLE history (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    model TEXT,
    action TEXT NOT NULL,
    number INTEGER,
    previous INTEGER,
    command TEXT NOT NULL,
    user TEXT NOT NULL,
    payload TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    parent_digest TEXT NOT NULL
) STRICT"""

_CHAIN = f"""CREATE TRIGGER history_is_a_chain BEFORE INSERT ON history
WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM history)
  OR NEW.parent_digest IS NOT coalesce((SELECT digest FROM history ORDER BY seq DESC LIMIT 1), '{ORIGIN}')
BEGIN SELECT RAISE(ABORT, 'history is a chain'); END"""  # noqa: S608  a constant

_FIRST = (
    _MODELS,
    _BLOBS,
    _VERSIONS,
    _FILES,
    _METRICS,
    _TAGS,
    _OPERATIONS,
    _HISTORY,
    "CREATE INDEX versions_by_parent ON versions (model, parent)",
    "CREATE INDEX files_by_digest ON files (digest)",
    "CREATE INDEX tags_by_number ON tags (model, number)",
    "CREATE INDEX operations_by_state ON operations (state)",
    "CREATE INDEX history_by_model ON history (model, seq)",
    _CHAIN,
    _never("history", "UPDATE", "history_is_not_edited"),
    _never("history", "DELETE", "history_is_not_cut"),
    _never("versions", "UPDATE", "versions_are_not_edited"),
    _never("versions", "DELETE", "versions_are_not_deleted"),
    _never("files", "UPDATE", "files_are_not_edited"),
    _never("files", "DELETE", "files_are_not_deleted"),
    _never("metrics", "UPDATE", "metrics_are_not_edited"),
    _never("metrics", "DELETE", "metrics_are_not_deleted"),
    _never("models", "UPDATE OF id, name, task, source, spec, classes, created, digest", "models_are_not_edited"),
    _never("models", "DELETE", "models_are_not_deleted"),
)

_BRANCHES = """CREATE TABLE branches (
    model INTEGER NOT NULL,
    name TEXT NOT NULL,
    head INTEGER NOT NULL,
    PRIMARY KEY (model, name),
    FOREIGN KEY (model, head) REFERENCES versions (model, number)
) STRICT, WITHOUT ROWID"""

# Two lines of a model side by side: the head moves out of the model, 'main' is the first branch.
_SECOND = (
    _BRANCHES,
    "CREATE INDEX branches_by_head ON branches (model, head)",
    "INSERT INTO branches (model, name, head) SELECT id, 'main', head FROM models",
    "ALTER TABLE models DROP COLUMN head",
    "ALTER TABLE operations ADD COLUMN branch TEXT NOT NULL DEFAULT 'main'",
)

STEPS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND)
"""STEPS[n] leads from schema n to schema n + 1; a new database goes through all of them."""
