"""The policy for names of models, tags and branches: safe as text, as a file name and inside a reference."""

from __future__ import annotations

import re

from .errors import BadName

_POLICY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_RESERVED = {"base", "head", "main"}
_WINDOWS = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}
_HINT = "use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"


def check_model_name(name: str) -> None:
    """Refuse a name no model may have."""
    if not _POLICY.fullmatch(name):
        raise BadName(f"{_shown(name)} is not a name for a model", _HINT)
    if name.split(".")[0].lower() in _WINDOWS:
        raise BadName(f"{name!r} is a device on Windows, not a name for a model", "choose another name")
    if name.lower() in _RESERVED:
        raise BadName(f"{name!r} is a reserved word", "choose another name")


def check_label(name: str, what: str) -> None:
    """Refuse a name no tag or branch (``what``) may have: also the ones a reference reads as a number."""
    if not _POLICY.fullmatch(name):
        raise BadName(f"{_shown(name)} is not a name for a {what}", _HINT)
    if name.isdigit():
        raise BadName(f"{name!r} would read as a version number", f"give the {what} a name with a letter")
    if name.lower() in _RESERVED or name.split(".")[0].lower() in _WINDOWS:
        raise BadName(f"{name!r} is a reserved word", "choose another name")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 64 else name[:61] + "...")
