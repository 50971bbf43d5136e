"""Make a recorded program shorter: what does nothing without gradients, what is done twice, what is copied in vain.

A step of a small model is as long as its list of operations, about 5 microseconds each. No pass changes a bit,
except `_order_products`, whose products add in another order.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default)
#: Plain functions of torch reach the same kernels with less Python around them.
_SHORTCUTS: Mapping[Any, Callable[..., Any]] = {
    aten.view.default: Tensor.view,
    aten._unsafe_view.default: Tensor.view,
    aten.expand.default: Tensor.expand,
    aten.transpose.int: Tensor.transpose,
    aten.permute.default: Tensor.permute,
    aten.unsqueeze.default: Tensor.unsqueeze,
    aten.select.int: Tensor.select,
    aten.t.default: torch.t,
    aten.bmm.default: torch.bmm,
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.neg.default: torch.neg,
    aten.relu.default: torch.relu,
    aten.tanh.default: torch.tanh,
    aten.where.self: torch.where,
}


def simplify(graph: fx.GraphModule) -> None:
    """Run all passes on a recorded program.

    Args:
        graph: with shape and type of every result in ``meta["shape"]`` and ``meta["dtype"]``; changed in place.
    """
    # A result that is written in place must stay a tensor of its own.
    writes = any(_is_mutable(node) for node in graph.graph.nodes)
    _drop_identities(graph.graph, keeps_products=writes)
    if not writes:
        _order_products(graph.graph)
    _merge_views(graph.graph)
    _drop_identities(graph.graph, keeps_products=writes)
    graph.graph.eliminate_dead_code(is_impure_node=_is_impure)
    if not writes:
        _drop_repetitions(graph.graph)
    for node in graph.graph.nodes:
        node.target = _SHORTCUTS.get(node.target, node.target)
    graph.recompile()


def _drop_identities(graph: fx.Graph, *, keeps_products: bool) -> None:
    """Detached copies of names, unchanged shapes, products with 1."""
    for node in list(graph.nodes):
        if node.op == "call_function" and _is_identity(node, keeps_products=keeps_products):
            node.replace_all_uses_with(cast(fx.Node, node.args[0]))
            graph.erase_node(node)


def _is_identity(node: fx.Node, *, keeps_products: bool) -> bool:
    if node.target in (aten.detach.default, aten.alias.default):
        return True
    if node.target in (aten.mul.Scalar, aten.mul.Tensor) and not keeps_products:
        # A product with a number of another kind may change the type.
        first = node.args[0]
        is_one = isinstance(node.args[1], int | float) and node.args[1] == 1
        return is_one and isinstance(first, fx.Node) and first.meta.get("dtype") == node.meta.get("dtype")
    is_shape = node.target in (*_VIEWS, aten.expand.default)
    return is_shape and _shape(node) is not None and _shape(node) == _shape(node.args[0])


def _merge_views(graph: fx.Graph) -> None:
    """A view of a view is a view."""
    for node in graph.nodes:
        while node.target in _VIEWS and node.args[0].target in _VIEWS:
            node.args = (node.args[0].args[0], node.args[1])


def _order_products(graph: fx.Graph) -> None:
    """A product that is transposed and copied is the product of the transposed in the other order, without the copy.

    Every weight gradient of a linear layer is one: vmap gives it transposed.
    """
    for node in list(graph.nodes):
        if node.target is not aten.clone.default:
            continue
        product = _transposed_product(node)
        if product is not None:
            left, right = product.args
            with graph.inserting_before(node):
                swapped = [graph.call_function(aten.transpose.int, (each, 1, 2)) for each in (right, left)]
                other = graph.call_function(aten.bmm.default, tuple(swapped))
                viewed = graph.call_function(aten.view.default, (other, list(node.meta["shape"])))
            viewed.meta["shape"] = node.meta["shape"]
            node.replace_all_uses_with(viewed)


def _transposed_product(copy: fx.Node) -> fx.Node | None:
    """The product whose last two axes a copy has the other way round; None if it is no such copy.

    Between them there may be views that cut or join the leading axes only.
    """
    node, is_swapped = cast(fx.Node, copy.args[0]), True
    wanted = tuple(copy.meta["shape"][-2:])
    while node.target in (*_VIEWS, aten.transpose.int):
        shape = _shape(node)
        expected = wanted if is_swapped else wanted[::-1]
        if shape is None or tuple(shape[-2:]) != expected or len(node.users) != 1:
            return None
        if node.target is aten.transpose.int:
            axes = {int(cast(int, axis)) % len(shape) for axis in node.args[1:]}
            if not is_swapped or axes != {len(shape) - 2, len(shape) - 1}:
                return None
            is_swapped = False
        node = cast(fx.Node, node.args[0])
    shape = _shape(node)
    is_product = node.target is aten.bmm.default and not is_swapped and len(node.users) == 1
    return node if is_product and shape is not None and tuple(shape[-2:]) == wanted[::-1] else None


def _drop_repetitions(graph: fx.Graph) -> None:
    """Compute once what is computed twice; only where nothing is written in place."""
    known: dict[tuple[Any, str, str], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _is_impure(node):
            continue
        key = (node.target, repr(node.args), repr(node.kwargs))
        if key in known:
            node.replace_all_uses_with(known[key])
            graph.erase_node(node)
        else:
            known[key] = node


def _shape(node: Any) -> torch.Size | None:
    return node.meta.get("shape") if isinstance(node, fx.Node) else None


def _is_mutable(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def _is_impure(node: fx.Node) -> bool:
    """Whether a node matters even if nobody reads its result; a draw does, because it moves its stream on."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    is_operation = hasattr(node.target, "_schema") or node.target is operator.getitem
    return not is_operation or _is_mutable(node)
