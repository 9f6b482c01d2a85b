"""What methods there are and what their hyper-parameters mean, read from the classes themselves."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any, get_type_hints

from kswapctl.errors import UsageError
from kswapctl.methods import Method, classes_of, known_names


def describe(name: str = "") -> list[dict[str, Any]]:
    """Each method (or the one called ``name``) with kind, summary, source, presets and hyper-parameters.

    In the list, another package's method that cannot be loaded has the reason for its summary, and no kind.
    """
    if name:
        return [_one(name, method) for method in classes_of(name)]
    found: list[dict[str, Any]] = []
    for each in known_names():
        try:
            found += [_one(each, method) for method in classes_of(each)]
        except UsageError as error:
            found.append(
                {"name": each, "kind": "", "summary": error.message, "source": "", "presets": [], "parameters": []}
            )
    return found


def _one(name: str, method: type[Method]) -> dict[str, Any]:
    presets = {preset: method.configure(preset, {}) for preset in method.presets}
    helps, hints = field_help(method), get_type_hints(method)
    return {
        "name": name,
        "kind": method.kind,
        "summary": inspect.cleandoc(method.__doc__ or "").split("\n")[0],
        "source": method.source,
        "presets": list(presets),
        "parameters": [
            {
                "name": f.name,
                "type": hints[f.name].__name__,
                "help": helps.get(f.name, ""),
                "values": {preset: getattr(m, f.name) for preset, m in presets.items()},
            }
            for f in dataclasses.fields(method)
            if f.name not in method.idle()
        ],
    }


def field_help(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass and its bases: the string that follows the field in the source."""
    helps: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, SyntaxError):  # another package may come without its source
            continue
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(text):
                helps[field.target.id] = " ".join(ast.literal_eval(text.value).split())  # type: ignore[attr-defined]
    return helps


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
