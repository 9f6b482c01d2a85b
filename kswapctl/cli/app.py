"""The app: every command registers here; errors become one line and an exit code in one place."""

from __future__ import annotations

import errno
import os
import signal
import sys
from importlib.metadata import version as package_version
from typing import Annotated, Any

import typer
from kswap_registry import RegistryError

from kswapctl.cli import (
    analyze,
    audit,
    care,
    change,
    declared,
    demo,
    evaluate,
    history,
    look,
    purge,
    record,
    registry,
    render,
    share,
    ship,
)
from kswapctl.cli.values import Command, Group
from kswapctl.errors import DiskError, KilledError, KswapError, MemoryShortError, StoppedError
from kswapctl.operations.environment import SAME_INDEX, is_mismatch

NO_MEMORY = ("can't allocate memory", "out of memory")
"""What torch says in a RuntimeError of its own."""
DISK_ERRORS = {
    (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG): "free some space, then run it again",
    (errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM): (
        "name another place, or change this one"
    ),
}
"""What the system may say of a place, and what helps."""


class TerminatedError(BaseException):
    """SIGTERM came: not an Exception, so that it goes through everything as Ctrl-C does."""


class Commands(Group):
    """Turns what operations raise into a message, a hint and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a bug's traceback passes through; of expected errors only with ``KSWAP_DEBUG=1``."""
        render.reset()
        try:
            return super().invoke(ctx)
        except (KswapError, RegistryError) as error:
            _fail(error)
        except KeyboardInterrupt as stop:
            _fail(StoppedError("interrupted: what was under way has registered nothing"), stop)
        except TerminatedError as stop:
            _fail(KilledError("terminated: what was under way has registered nothing"), stop)
        except MemoryError as stop:
            _fail(MemoryShortError(), stop)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it exits
            raise typer.Exit(0) from None
        except RuntimeError as error:
            if any(words in str(error) for words in NO_MEMORY):
                _fail(MemoryShortError(), error)
            if not is_mismatch(error):
                raise
            _fail(KswapError("torchvision does not fit this torch", SAME_INDEX))
        except OSError as error:
            hint = next((hint for numbers, hint in DISK_ERRORS.items() if error.errno in numbers), "")
            if not hint:
                raise
            _fail(DiskError(f"{error.strerror}: {error.filename or 'the disk'}", hint), error)


def _fail(error: KswapError | RegistryError, cause: BaseException | None = None) -> None:
    """Say ``error``, with the notes that what stopped the work, ``cause`` or itself, was given on its way."""
    if os.environ.get("KSWAP_DEBUG"):
        raise error
    error.message = " ".join([error.message, *getattr(cause or error, "__notes__", [])])
    render.error(error, error.exit_code)
    raise typer.Exit(error.exit_code)


app = typer.Typer(
    name="kswapctl",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Change what a trained vision model knows: learn classes, forget others, measure, roll back, ship.",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"kswapctl {package_version('kswapctl')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


MODULES = (demo, registry, change, declared, evaluate, look, analyze, history, audit, record, purge, ship, share, care)
"""In the order of the help."""

for module in MODULES:
    for name, command in module.COMMANDS.items():
        app.command(name, cls=Command)(command)


def main() -> None:
    """Entry point of the ``kswapctl`` script."""
    signal.signal(signal.SIGTERM, _terminate)
    app()


def _terminate(*_: object) -> None:
    raise TerminatedError
