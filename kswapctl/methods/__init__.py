"""Recipes for a change. A new one is its own file and one line here, or an entry point of another package."""

from kswapctl.errors import NotFoundError, UsageError, nearest
from kswapctl.methods import (
    bi_level,
    der,
    derpp,
    erase,
    ewc,
    fdr,
    finetune,
    fpf,
    gs_lora,
    gs_lora_plus,
    imprint_only,
    knowledge_swap,
    l1_sparse,
    l2,
    laf,
    lirf,
    lwf,
    margin_flatten,
    mas,
    neggrad,
    random_label,
    retrain,
    salun,
    scrub,
    ssd,
    weight_align,
)
from kswapctl.methods.base import Context, Method, Seen
from kswapctl.methods.foreign import foreign_names, load_foreign
from kswapctl.spec import Kind

METHODS: dict[str, tuple[type[Method], ...]] = {
    "gs-lora": (gs_lora.Learn, gs_lora.Forget),
    "gs-lora++": (gs_lora_plus.Forget,),
    "knowledge-swap": (knowledge_swap.Learn, knowledge_swap.Forget),
    "erase": (erase.Forget,),
    "finetune": (finetune.Learn, finetune.Forget),
    "retrain": (retrain.Learn, retrain.Forget),
    "l2": (l2.Learn, l2.Forget),
    "ewc": (ewc.Learn, ewc.Forget),
    "mas": (mas.Learn, mas.Forget),
    "lwf": (lwf.Learn, lwf.Forget),
    "der": (der.Learn, der.Forget),
    "der++": (derpp.Learn, derpp.Forget),
    "fdr": (fdr.Learn, fdr.Forget),
    "scrub": (scrub.Forget,),
    "scrub-s": (scrub.Smoothed,),
    "lirf": (lirf.Forget,),
    "ssd": (ssd.Forget,),
    "laf": (laf.Forget,),
    "neggrad+": (neggrad.Forget,),
    "l1-sparse": (l1_sparse.Forget,),
    "random-label": (random_label.Forget,),
    "salun": (salun.Forget,),
    "margin-flatten": (margin_flatten.Forget,),
    "bi-level": (bi_level.Forget,),
    "imprint-only": (imprint_only.Learn,),
    "weight-align": (weight_align.Learn,),
    "fpf": (fpf.Learn,),
}


def known_names() -> list[str]:
    """Names of all methods: ours, then those that other packages declare."""
    return [*METHODS, *(name for name in foreign_names() if name not in METHODS)]


def classes_of(name: str) -> tuple[type[Method], ...]:
    """The classes of method ``name``, one a kind; an unknown name answers with the nearest ones."""
    if name in METHODS:
        return METHODS[name]
    if name not in foreign_names():
        raise NotFoundError(f"no method {name!r}", nearest(name, known_names()))
    return load_foreign(name)


def find_method(name: str, kind: Kind) -> type[Method]:
    """The class of method ``name`` for learning or forgetting; an unknown name answers with the nearest ones."""
    for method in classes_of(name):
        if method.kind == kind:
            return method
    able = ", ".join(n for n, kinds in METHODS.items() if any(m.kind == kind for m in kinds))
    raise UsageError(f"method {name!r} cannot {kind}", f"methods that can: {able}")


__all__ = ["METHODS", "Context", "Method", "Seen", "classes_of", "find_method", "known_names"]
