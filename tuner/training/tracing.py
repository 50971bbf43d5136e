"""Record a batched function once, as a flat graph of tensor operations, and run the graph ever after.

What is recorded holds no vmap, no autograd and no user code: a step costs its kernels and little more. Draws of
random numbers become draws per seed (`tuner.training.streams.SeedStreams`). User code that can't be recorded
(``.item()``, a branch on a tensor's value, a random operation that no rule covers) raises `NotBatchableError`.

Shape letters: S = seeds.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from tuner.training.draws import Fill, redirect_draws
from tuner.training.memory import is_out_of_memory
from tuner.training.not_batchable import NotBatchableError
from tuner.training.passes import simplify
from tuner.training.streams import SeedStreams

aten = torch.ops.aten
_DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Recorded:
    """A recorded function.

    Attributes:
        graph: the recorded operations.
        num_draws: how many of them draw random numbers.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self._streams: SeedStreams | None = None
        self.num_draws = redirect_draws(graph, self._draw)
        simplify(graph)
        self._run: Callable[..., Any] = graph.forward

    def __call__(self, streams: SeedStreams, *args: Any) -> Any:
        """Run the operations.

        Args:
            streams: where its random numbers come from.
            *args: as the function was recorded with, of the same nesting, shapes and types.

        Returns:
            What the function returns: a tensor or a tuple of tensors.
        """
        self._streams = streams
        with torch.no_grad():
            return self._run(*_tensors_of(args))

    def compile(self) -> None:
        """Fuse the operations with torch.compile; the first run compiles, and takes tens of seconds."""
        self._run = torch.compile(self.graph)

    def _draw(self, fill: Fill, like: Tensor) -> Tensor:
        assert self._streams is not None
        return self._streams.draw(fill, like)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes every operation that reaches a kernel into a graph; vmap and autograd are above it and leave no trace.

    torch's own ``make_fx`` does this too. It also builds a stand-in for every tensor and imports the compiler,
    which takes seconds before the first step.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        # Tensors are known by identity, and forgotten when the recorded code lets go of them, as in a plain run.
        self._nodes = WeakTensorKeyDictionary()
        for number, tensor in enumerate(inputs):
            self._remember(tensor, self.graph.placeholder(f"input_{number}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: being skipped imports the compiler first, which takes two seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if _DATA_DEPENDENT & set(func.tags) and not _indexes_by_number(func, args):
            raise NotBatchableError(
                _REMEDIES.get(
                    func.__name__.split(".")[0],
                    f"the model calls {func}, whose result depends on a tensor's values",
                )
            )
        if func._schema.is_mutable and args and self._is_constant(args[0]):
            raise NotBatchableError(
                "the model changes a tensor in place that is neither a parameter nor a buffer that training changes"
            )
        taken = pytree.tree_map_only(Tensor, self.node_of, (args, dict(kwargs)))
        result = func(*args, **kwargs)
        node = self.graph.call_function(func, *taken)
        if isinstance(result, Tensor):
            self._remember(result, node)
        elif isinstance(result, (tuple, list)):
            for number, each in enumerate(result):
                if isinstance(each, Tensor):
                    self._remember(each, self.graph.call_function(operator.getitem, (node, number)))
        return result

    def _is_constant(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and self.node_of(tensor).op == "get_attr"

    def node_of(self, tensor: Tensor) -> fx.Node:
        """Where a tensor came from; one that nothing recorded made is a constant."""
        if tensor not in self._nodes:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = tensor.detach() if tensor.requires_grad else tensor
            self._remember(tensor, self.graph.get_attr(name))
        node: fx.Node = self._nodes[tensor]
        return node

    def _remember(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["shape"], node.meta["dtype"] = tensor.shape, tensor.dtype
        self._nodes[tensor] = node


def _indexes_by_number(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation indexes by whole numbers, whose result has a fixed shape; a mask's has not."""
    if func not in (aten.index.Tensor, aten._unsafe_index.Tensor):
        return False
    return all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1])


def record(function: Callable[..., Any], *args: Any) -> Recorded:
    """Record a function of tensors.

    Args:
        function: runs once on ``args``; returns a tensor or a tuple of tensors.
        *args: nestings of tensors; in-place changes to them are made, and recorded.

    Returns:
        The recorded function.

    Raises:
        NotBatchableError: if the function does something that depends on a tensor's value, or that has no batched form.
    """
    recorder = _Recorder(_tensors_of(args))
    try:
        with warnings.catch_warnings(), recorder:
            # An operation that falls back to one lane at a time is correct; its cost is measured like any other.
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
            result = function(*args)
            results = (result,) if isinstance(result, Tensor) else tuple(result)
        nodes = tuple(recorder.node_of(each) for each in results)
    except Exception as error:
        if isinstance(error, NotBatchableError) or is_out_of_memory(error):
            raise
        raise NotBatchableError(explain(error)) from error
    recorder.graph.output(nodes[0] if isinstance(result, Tensor) else nodes)
    root = nn.Module()
    for name, tensor in recorder.constants.items():
        root.register_buffer(name, tensor)
    return Recorded(fx.GraphModule(root, recorder.graph))


def _tensors_of(args: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]


def are_alike(one: Recorded, other: Recorded) -> bool:
    """Whether two recordings of one function are the same program.

    They differ if the function depends on something that is not among its arguments: a counter, Python's random
    numbers, the time. Such a function must not be run from a recording.

    Args:
        one: a recording.
        other: another.

    Returns:
        True if their operations and constants agree.
    """
    if one.graph.code != other.graph.code:
        return False
    mine, theirs = _constants(one.graph), _constants(other.graph)
    return mine.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) if isinstance(value, Tensor) else value is theirs[name]
        for name, value in mine.items()
    )


def explain(error: BaseException) -> str:
    """A sentence that says why user code can't be batched, with the remedy where one is known.

    Args:
        error: what vmap or the recording raised.

    Returns:
        One line.
    """
    text = str(error).strip().split("\n")[0]
    for sign, remedy in _REMEDIES.items():
        if sign in str(error):
            return f"{remedy} ({type(error).__name__}: {text[:160]})"
    return f"{type(error).__name__}: {text[:300]}"


_REMEDIES: Mapping[str, str] = {
    ".item()": "the loss or the model reads a tensor's value with .item() or float(): keep it a tensor",
    "_local_scalar_dense": "the loss or the model reads a tensor's value with .item() or float(): keep it a tensor",
    "data-dependent control flow": "the model branches on a tensor's value: use torch.where instead of if",
    "nonzero": "the model selects by a mask, whose result has no fixed shape: use torch.where or a weighted sum",
    "Batching rule not implemented": "an operation of the model has no batched form",
    "boolean mask": "the model selects by a mask, whose result has no fixed shape: use torch.where or a weighted sum",
    "output dynamic shape": "the model calls an operation whose result's shape depends on a tensor's values",
    "inplace arithmetic": "the model changes a tensor in place that lanes share: write it out of place",
    "out=": "the model calls an operation with out=: assign its result instead",
}


def _constants(graph: fx.GraphModule) -> dict[str, Any]:
    return {node.target: getattr(graph, node.target) for node in graph.graph.find_nodes(op="get_attr")}
