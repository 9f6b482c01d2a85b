"""Recipes for a change. A new one is its own file and one line here."""

from kswapctl.errors import NotFoundError, UsageError, nearest
from kswapctl.methods import erase, gs_lora
from kswapctl.methods.base import Context, Method, Seen
from kswapctl.spec import Kind

METHODS: dict[str, tuple[type[Method], ...]] = {
    "gs-lora": (gs_lora.Learn, gs_lora.Forget),
    "erase": (erase.Forget,),
}


def find_method(name: str, kind: Kind) -> type[Method]:
    """The class of method ``name`` for learning or forgetting; an unknown name answers with the nearest ones."""
    if name not in METHODS:
        raise NotFoundError(f"no method {name!r}", nearest(name, METHODS))
    for method in METHODS[name]:
        if method.kind == kind:
            return method
    able = ", ".join(n for n, kinds in METHODS.items() if any(m.kind == kind for m in kinds))
    raise UsageError(f"method {name!r} cannot {kind}", f"methods that can: {able}")


__all__ = ["METHODS", "Context", "Method", "Seen", "find_method"]
