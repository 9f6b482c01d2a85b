"""Do the libraries import, and do they fit together? What ``doctor --env`` asks."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

LIBRARIES = ("torch", "torchvision", "timm", "peft", "onnxruntime")
"""In the order in which one needs the other."""
SAME_INDEX = "install torch and torchvision from the same index, in one command"
"""What to do when torchvision was built for another torch."""


@dataclass(frozen=True)
class Library:
    """One library, as this interpreter sees it."""

    name: str
    version: str
    """Empty where it does not import."""
    problem: str = ""
    hint: str = ""


def check_libraries() -> list[Library]:
    """Import each library in turn; what one raises is told, and the next is tried."""
    return [_check(name) for name in LIBRARIES]


def is_mismatch(error: BaseException) -> bool:
    """Whether ``error`` is what a torchvision built for another torch raises."""
    return "torchvision::" in str(error) or "torchvision._C" in str(error)


def _check(name: str) -> Library:
    try:
        module = importlib.import_module(name)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # a broken build raises any of these
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Library(name, "", lines[0][:200], SAME_INDEX if is_mismatch(error) else f"install {name} again")
    return Library(name, str(getattr(module, "__version__", "?")))
