"""Values that are plainly right skip typer's pydantic adapters: importing pydantic takes longer than most commands do.

Anything else (a number out of range, a choice, a list) goes to typer as ever, and so does what is wrong with it. Of an
option that is given twice typer uses the last, as a script that overrides one wants it; but who names data or classes
twice means both: that is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer
import typer.core

Process = Callable[[Any, Any], Any]
GATHERED = {"--data", "--retain-data", "--classes", "--learn", "--forget"}
"""Options of which two are taken for more of the same."""


class Command(typer.core.TyperCommand):
    """A command that imports pydantic only for values that need it, and loses no data or classes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; data and classes that would be lost are refused."""
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for parameter in given:
                if given.count(parameter) > 1 and not parameter.multiple and GATHERED & {*parameter.opts}:
                    told: Any = parameter
                    raise typer.BadParameter("it takes one value, and is given more than once", ctx=ctx, param=told)
        return list(super().parse_args(ctx, args))

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, each of which looks first whether its value is plain."""
        return _quick(super().get_params(ctx))


class Group(typer.core.TyperGroup):
    """The same for the options before the command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, each of which looks first whether its value is plain."""
        return _quick(super().get_params(ctx))


def _quick(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if "process_value" not in vars(parameter):
            parameter.process_value = partial(_process, parameter, parameter.process_value)
    return parameters


def _process(parameter: Any, process: Process, context: Any, value: Any) -> Any:
    plain, converted = read_plainly(parameter, value)
    if not plain:
        return process(context, value)
    return parameter.callback(context, parameter, converted) if parameter.callback else converted


def read_plainly(parameter: Any, value: Any) -> tuple[bool, Any]:
    """Whether ``value`` is plainly right for ``parameter``, and it as the parameter's type."""
    if parameter.multiple or parameter.nargs != 1:
        return False, None
    if value is None:
        return not parameter.required, None
    descriptor = getattr(parameter, "type_descriptor", None)
    if descriptor is None:
        return False, None  # typer before 0.29, which needs no pydantic
    wanted = descriptor.annotation
    if type(value) is wanted:
        return value is parameter.default or wanted in (str, bool), value
    if wanted is Path and isinstance(value, str):
        return _is_any_path(descriptor.parameter_info, value), Path(value)
    if wanted is int and isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return _is_in_range(descriptor.parameter_info, int(value)), int(value)
    return False, None


def _is_any_path(wanted: Any, value: str) -> bool:
    asks = wanted.exists or wanted.resolve_path or wanted.writable or wanted.allow_dash or wanted.path_type
    allows = wanted.file_okay and wanted.dir_okay
    return bool(allows and not asks and (os.access(value, os.R_OK) or not os.path.lexists(value)))


def _is_in_range(wanted: Any, value: int) -> bool:
    least = value if wanted.min is None else wanted.min
    most = value if wanted.max is None else wanted.max
    return bool(least <= value <= most and not wanted.clamp)
