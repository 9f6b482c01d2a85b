"""The errors a user can meet: what went wrong, what to do now, and the exit code of the command."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class KswapError(Exception):
    """One clear line for the person at the prompt, with a hint and an exit code."""

    exit_code = 1
    kind = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(KswapError):
    """The command was called with values that do not fit together."""

    exit_code = 2
    kind = "usage"


class NotFoundError(KswapError):
    """A class, file or name that was asked for does not exist."""

    exit_code = 3
    kind = "not-found"


class DataError(KswapError):
    """The images, labels or files given cannot be used."""

    exit_code = 4
    kind = "bad-data"


class IntegrityError(KswapError):
    """Stored bytes are not what the registry says they are."""

    exit_code = 12
    kind = "integrity"


class WrongBaseError(KswapError):
    """A checkpoint or adapter does not fit the model it is meant for."""

    exit_code = 13
    kind = "wrong-base"


class UnsafeInputError(KswapError):
    """A file could run code or escape its folder, and was not opened."""

    exit_code = 15
    kind = "unsafe-input"


class DiskError(KswapError):
    """Writing failed: no space, read-only, or an I/O error."""

    exit_code = 16
    kind = "disk"


class MemoryShortError(KswapError):
    """The machine, or its device, has too little memory for this."""

    exit_code = 16
    kind = "memory"

    def __init__(self) -> None:
        super().__init__(
            "there is not enough memory",
            "use fewer or smaller images (learn, forget: --retain-per-class), or a machine with more",
        )


class DivergedError(KswapError):
    """Training produced NaN or infinity, or changed nothing; nothing was registered."""

    exit_code = 17
    kind = "diverged"


class StoppedError(KswapError):
    """Ctrl-C came."""

    exit_code = 130
    kind = "interrupted"


class KilledError(KswapError):
    """SIGTERM came."""

    exit_code = 143
    kind = "terminated"


class TeamError(KswapError):
    """One of the processes that share an operation has died; nothing was registered."""

    exit_code = 18
    kind = "team"


class ParityError(KswapError):
    """An exported file does not compute what the model computes; it was not kept."""

    exit_code = 22
    kind = "parity"


@contextmanager
def told_at(place: str) -> Iterator[None]:
    """An error within says where it is: a file, or a path in one."""
    try:
        yield
    except KswapError as error:
        error.message = f"{place}: {error.message}"
        raise


def as_typed(name: str) -> str:
    """A name as the command line takes it in a list: one with a comma stands in quotes."""
    return '"' + name.replace('"', '""') + '"' if "," in name or name.startswith('"') else name


def counted(number: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names most like ``name``, as a phrase for a hint: ``did you mean 'a', 'b'?``"""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return "did you mean " + ", ".join(repr(as_typed(c)) for c in close) + "?"
    shown = ", ".join(names[:8])
    return f"known: {shown}{', ...' if len(names) > 8 else ''}" if names else "none is known"


def first_line(error: BaseException) -> str:
    """What a library's error says first, in at most 160 characters, to quote in a line of ours."""
    lines = str(error).strip().splitlines()
    return " ".join(lines[0].split())[:160] if lines else type(error).__name__
