"""Methods of other packages, which declare them as entry points; what cannot be loaded is told in one line.

An entry point of the group ``kswapctl.methods`` has the method's name, and names a class that inherits from
:class:`Method`, or a tuple of such classes, one a kind.
"""

from importlib.metadata import EntryPoint, entry_points

from kswapctl.errors import UsageError
from kswapctl.methods.base import Method

GROUP = "kswapctl.methods"

BROKEN = (
    ImportError,
    AttributeError,
    NameError,
    SyntaxError,
    TypeError,
    ValueError,
    OSError,
    RuntimeError,
    LookupError,
)
"""What importing a stranger's module may raise."""


def foreign_names() -> list[str]:
    """Names that other packages declare; none of their code is run."""
    return sorted(_points())


def load_foreign(name: str) -> tuple[type[Method], ...]:
    """The classes behind an entry point; one that cannot be loaded, or is no method, is a :class:`UsageError`."""
    point = _points()[name]
    origin = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    try:
        loaded = point.load()
    except BROKEN as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(
            f"method {name!r} of {origin} cannot be loaded ({said})", "repair or remove that package"
        ) from error
    classes = loaded if isinstance(loaded, tuple) else (loaded,)
    for one in classes:
        if not (isinstance(one, type) and issubclass(one, Method) and hasattr(one, "kind") and hasattr(one, "source")):
            raise UsageError(
                f"method {name!r} of {origin} is no method ({point.value})",
                "its entry point must name a class that inherits from kswapctl.methods.Method, with kind and source",
            )
        try:
            for preset in one.presets:
                one.configure(preset, {})
        except (TypeError, ValueError, AttributeError, UsageError) as error:
            raise UsageError(
                f"method {name!r} of {origin} cannot be configured ({error})",
                "its fields are bool, int, float or str, and its presets set no others",
            ) from error
    return classes


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
