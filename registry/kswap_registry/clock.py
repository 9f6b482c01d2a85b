"""The time, as the registry writes it. Order never depends on it: clocks jump."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


def stamp() -> str:
    """The present moment as ISO 8601 text in UTC."""
    return now().isoformat(timespec="microseconds")


def seconds_since(moment: str) -> float:
    """Seconds from an ISO moment until now; negative when the clock went back."""
    return (now() - datetime.fromisoformat(moment)).total_seconds()
