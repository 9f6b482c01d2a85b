"""Cut a network in two at a block: what lies below is frozen, runs once an image, and can be cached."""

from __future__ import annotations

from collections.abc import Collection

from timm.models import get_notrace_functions, get_notrace_modules
from torch import fx, nn


class _BlockTracer(fx.Tracer):
    """Traces a network down to its blocks, which stay whole (so that adapters inside them do not matter)."""

    def __init__(self, whole: Collection[str]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.whole = set(whole)
        self.untraceable = tuple(get_notrace_modules())

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        """Blocks, the classifier, torch's own layers, and what timm marks as not traceable."""
        return path in self.whole or isinstance(module, self.untraceable) or super().is_leaf_module(module, path)


def cut(model: nn.Module, blocks: Collection[str], first: str) -> tuple[nn.Module, nn.Module] | None:
    """``model`` as two networks: images to the input of block ``first``, and from there to the outputs.

    Both share the model's parameters. None where the network cannot be cut there: it cannot be traced, or
    something else than the block's input crosses the cut.
    """
    try:
        graph = _BlockTracer(blocks).trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError):
        return None
    node = next((n for n in graph.nodes if n.op == "call_module" and n.target == first), None)
    if node is None or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    below, above = _below(graph, node.args[0].name), _above(graph, node.args[0].name)
    if above is None:
        return None
    return fx.GraphModule(model, below), fx.GraphModule(model, above)


def _below(graph: fx.Graph, border: str) -> fx.Graph:
    """The part of ``graph`` that computes the node called ``border``."""
    part = _copy(graph)
    node = next(n for n in part.nodes if n.name == border)
    output = next(n for n in part.nodes if n.op == "output")
    part.erase_node(output)
    part.output(node)
    part.eliminate_dead_code(_is_impure)
    return part


def _above(graph: fx.Graph, border: str) -> fx.Graph | None:
    """The part of ``graph`` that needs the node called ``border``; None if it also needs the images."""
    part = _copy(graph)
    node = next(n for n in part.nodes if n.name == border)
    images = next(n for n in part.nodes if n.op == "placeholder")
    if node is images:
        return part
    with part.inserting_before(images):
        entry = part.placeholder("activations")
    node.replace_all_uses_with(entry)
    part.eliminate_dead_code(_is_impure)
    if images.users:
        return None
    part.erase_node(images)
    return part


def _copy(graph: fx.Graph) -> fx.Graph:
    part = fx.Graph()
    names: dict[fx.Node, fx.Node] = {}
    output = part.graph_copy(graph, names)
    part.output(output)
    for old, new in names.items():
        new.name = old.name
    return part


def _is_impure(node: fx.Node) -> bool:
    """Only inputs must stay; timm's shape assertions may go."""
    return node.op in {"placeholder", "output"}
