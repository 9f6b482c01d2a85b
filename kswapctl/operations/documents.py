"""Files in which people declare what is to be done: YAML, checked; an error names the key, the value and what would do.

Only the commands that read such files import this module, so that pydantic and PyYAML cost the others nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError

from kswapctl.errors import UsageError, nearest
from kswapctl.export.files import require_file

Shape = TypeVar("Shape", bound="Document")


class Document(BaseModel):
    """Values of a file: no key that is not known, no text where a number belongs, frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def read_document(file: Path, shape: type[Shape]) -> Shape:
    """The values of a YAML ``file`` as ``shape``; what is wrong is a :class:`UsageError` with the key's path."""
    require_file(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file.name} is no UTF-8 text", "save it as UTF-8") from error
    return parse_document(text, shape, file.name)


def parse_document(text: str, shape: type[Shape], name: str) -> Shape:
    """The values of YAML ``text`` as ``shape``; ``name`` is the file's, for messages."""
    try:
        values = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except (ValueError, RecursionError) as error:  # a number that is none, too deep
        raise UsageError(f"{name} holds a value that cannot be read ({error})", "put text in quotes") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{name}{where} is not YAML ({getattr(error, 'problem', None) or error})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name} holds no keys", f"known: {', '.join(shape.model_fields)}")
    try:
        return shape.model_validate_json(_json(values, name))
    except ValidationError as error:
        raise _told(error, shape, name, text) from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Refuses a key that stands twice in one place: the last would win unseen. A date is the text that stands there."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, shape) for tag, shape in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The values of a mapping by their keys."""
        keys: dict[str, yaml.ScalarNode] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if keys.setdefault(key.value, key) is not key:
                raise ConstructorError(None, None, f"the key {key.value} stands there twice", key.start_mark)
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        return values


def _json(values: dict[str, Any], name: str) -> str:
    """JSON of what YAML gave: there, lists may become tuples though types are strict."""
    try:
        return json.dumps(values)
    except TypeError as error:
        raise UsageError(f"{name} holds a value that is no text, number or list ({error})", "quote it") from error
    except ValueError as error:
        raise UsageError(f"{name} holds an alias of what it stands in", "write it out") from error


def _told(error: ValidationError, shape: type[Document], name: str, text: str) -> UsageError:
    found = error.errors()
    # pydantic drops what is wrong from a list, and then may find the list too short
    told = [e for e in found if e["type"] != "too_short" or not any(_within(e["loc"], f["loc"]) for f in found)]
    first, more = told[0], f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    if first["type"] == "missing":  # a key that is no key there may be this one, misspelt
        beside = (e for e in told if e["type"] == "extra_forbidden" and e["loc"][:-1] == first["loc"][:-1])
        first = next(beside, first)
    path, holder = _walk(first["loc"], shape)
    if first["type"] == "union_tag_invalid":
        path += ".op"
    return UsageError(f"{name}: {path}: {_said(first)}{more}", _hint(first, holder, _written(text, first["loc"])))


def _written(text: str, place: tuple[int | str, ...]) -> str:
    """The scalar at ``place`` as it stands in YAML ``text``, where 010 is read as 8; empty where it is none."""
    node = yaml.compose(text, _Loader)
    for part in place:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
        elif isinstance(node, yaml.MappingNode):  # a shape's name that pydantic puts between is no key
            node = next((value for key, value in node.value if key.value == part), node)
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _within(outer: tuple[int | str, ...], place: tuple[int | str, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _said(detail: ErrorDetails) -> str:
    value = detail["input"]
    if detail["type"] == "union_tag_not_found":
        return "op is missing"
    if detail["type"] == "missing":
        return "is missing"
    if detail["type"] == "extra_forbidden":
        return f"is no key here (its value is {value!r})"
    if detail["type"] == "union_tag_invalid":
        return f"is {value['op']!r}"
    if detail["type"] == "too_short":
        return f"holds {detail['ctx']['actual_length']}, and must hold {detail['ctx']['min_length']} at least"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}, not {value!r}"


def _hint(detail: ErrorDetails, holder: type[BaseModel] | None, written: str) -> str:
    known = list(holder.model_fields) if holder else []
    if detail["type"] == "union_tag_not_found":
        return "op is learn or forget"
    expected = str(detail.get("ctx", {}).get("expected") or detail.get("ctx", {}).get("expected_tags") or "")
    if detail["type"] == "extra_forbidden":
        return nearest(str(detail["loc"][-1]), known)
    if expected:
        options = [w.strip(" '") for w in expected.replace(" or ", ",").split(",")]
        given = detail["input"].get("op", "") if isinstance(detail["input"], dict) else detail["input"]
        return nearest(str(given), options)
    if detail["type"] in {"tuple_type", "list_type"} and isinstance(detail["input"], str):
        return f"write a list: {json.dumps([part.strip() for part in detail['input'].split(',')])}"
    if isinstance(detail["input"], bool):
        return "YAML reads yes, no, on and off as true and false: put the name in quotes"
    if detail["type"] == "string_type" and isinstance(detail["input"], int | float):
        return f'put it in quotes: "{written or detail["input"]}"'
    return ""


def _walk(place: tuple[int | str, ...], shape: type[BaseModel]) -> tuple[str, type[BaseModel] | None]:
    """The path as a reader would write it, and the shape that holds its last key."""
    path, options = "", [shape]
    holder: type[BaseModel] | None = shape
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        chosen = [s for s in options if _tag(s) == part]
        if chosen:  # pydantic's name for one of several shapes, no key of the file
            options, holder = chosen, chosen[0]
            continue
        path += f".{part}" if path else part
        holder = next((s for s in options if part in s.model_fields), options[0] if options else holder)
        options = [s for o in options if part in o.model_fields for s in _shapes(o.model_fields[part].annotation)]
    return path, holder


def _tag(shape: type[BaseModel]) -> str:
    field = shape.model_fields.get("op")
    return str(get_args(field.annotation)[0]) if field and get_args(field.annotation) else ""


def _shapes(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation: of a list's items, a mapping's values, a union's sides."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Union or get_args(annotation):
        return [s for a in get_args(annotation) for s in _shapes(a)]
    return []
