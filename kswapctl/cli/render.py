"""How things look: tables and JSON on stdout, progress and messages on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text


class Failure(Protocol):
    """What every error of ours carries."""

    @property
    def message(self) -> str:
        """What went wrong."""

    @property
    def hint(self) -> str:
        """What to do now."""

    @property
    def kind(self) -> str:
        """One word for programs."""


@dataclasses.dataclass
class _Style:
    json: bool = False
    quiet: bool = False


_style = _Style()


def reset() -> None:
    """Forget the options of an earlier command in this process."""
    _style.json = _style.quiet = False


def use_json() -> None:
    """Print JSON instead of tables."""
    _style.json = True


def use_quiet() -> None:
    """No progress."""
    _style.quiet = True


def out() -> Console:
    """The console of data."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False, emoji=False)


def err() -> Console:
    """The console of messages."""
    return Console(file=sys.stderr, stderr=True, highlight=False, emoji=False, soft_wrap=True)


def clean(text: str) -> str:
    """``text`` without control characters and Rich markup: names come from strangers' folders."""
    return escape(printable(text))


def printable(text: str) -> str:
    """``text`` with a question mark for each control character."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def error(failure: Failure, code: int) -> None:
    """What went wrong, and what to do now."""
    if _style.json:
        print(json.dumps({"code": code, "kind": failure.kind, "message": failure.message, "hint": failure.hint}))
        return
    err().print(f"[bold red]error:[/] {clean(failure.message)}")
    if failure.hint:
        err().print(f"[dim]hint:[/]  {clean(failure.hint)}")


def say(text: str) -> None:
    """A message for the person, on stderr."""
    if not _style.quiet:
        err().print(clean(text))


def waiting(holder: object) -> None:
    """Tell for whom a command waits."""
    say(f"waiting for {holder} ...")


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print(text.encode("utf-8", "backslashreplace").decode())  # names of files need not be UTF-8


def data(value: Any, *tables: Table) -> None:
    """``value`` as JSON where that was asked for, else the tables."""
    if _style.json:
        print_json(_plain(value))
        return
    console = out()
    for table in tables:
        console.print(table)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; columns whose name begins with ``#`` are right-aligned numbers."""
    built = Table(
        title=title or None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        show_header=any(columns),
    )
    for column in columns:
        built.add_column(column.lstrip("#"), justify="right" if column.startswith("#") else "left", overflow="fold")
    for row in rows:
        built.add_row(*(Text(printable(str(cell))) for cell in row))  # as Text, nothing in it is read as markup
    return built


def percent(share: float | None) -> str:
    """A share in [0, 1] as percent with one decimal."""
    return "-" if share is None else f"{100 * share:.1f}"


def points(change: float) -> str:
    """A difference of shares, in percentage points with its sign."""
    return f"{100 * change:+.1f}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


class Live:
    """Progress on stderr: a bar a stage where there is a terminal, else a line a stage; notes are kept for the end."""

    def __init__(self) -> None:
        self._console = err()
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = Bar(*columns, console=self._console, disable=_style.quiet or not self._console.is_terminal)
        self._task: TaskID | None = None
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if kind is None:
            for text in self.notes:
                self._console.print(f"[yellow]note:[/]  {clean(text)}")

    def stage(self, title: str, total: int) -> None:
        """Begin a bar."""
        if self._bar.disable and not _style.quiet:
            self._console.print(f"{title} ...")
        self._task = self._bar.add_task(title, total=total, figures="")

    def advance(self, count: int = 1) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.advance(self._task, count)

    def figures(self, values: Mapping[str, float]) -> None:
        """Show the latest figures beside the bar."""
        shown = "  ".join(f"{k} {percent(v)}" for k, v in values.items() if k in {"retain", "learn", "forget"})
        if self._task is None:
            return
        self._bar.update(self._task, figures=shown)
        if self._bar.disable and not _style.quiet:
            task = self._bar.tasks[self._task]
            self._console.print(f"  {task.completed:.0f}/{task.total:.0f}  {shown}")

    def note(self, text: str) -> None:
        """Keep a note for the end."""
        if text not in self.notes:
            self.notes.append(text)
