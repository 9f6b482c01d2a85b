"""What long work says while it runs; the command line shows it, a library caller may ignore it."""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Listener of long work."""

    def stage(self, title: str, total: int) -> None:
        """A new piece of work of ``total`` units begins."""

    def advance(self, count: int = 1) -> None:
        """``count`` more units are done."""

    def figures(self, values: Mapping[str, float]) -> None:
        """The latest figures of training."""

    def note(self, text: str) -> None:
        """Something the user should know, now and in the end."""


class Silent:
    """Says nothing."""

    def stage(self, title: str, total: int) -> None:
        """Ignored."""

    def advance(self, count: int = 1) -> None:
        """Ignored."""

    def figures(self, values: Mapping[str, float]) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""
