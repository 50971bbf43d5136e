"""Lanes the way the engine trains them, and the loop over plain modules they must equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from tuner.functions import LaneFunctions

SEEDS, TRIALS = 2, 3


class Lanes(NamedTuple):
    """Stacked parameters, buffers and inputs; (S, K, ...) and (S, ...)."""

    graph: GraphModule
    arguments: tuple[list[Tensor], list[Tensor], tuple[Tensor, ...]]

    def run(self, seeds: tuple[int, ...] | None = None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Losses (S, K), gradients, and buffers as the step left them; masks from one generator per seed."""
        if seeds is not None:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            self._draw_from(generators)
        parameters, buffers, inputs = self.arguments
        buffers = [each.clone() for each in buffers]
        with torch.no_grad():
            losses, gradients = self.graph(parameters, buffers, inputs)
        return losses, gradients, buffers

    def _draw_from(self, generators: list[torch.Generator]) -> None:
        """What the engine does: axis 0 of a random node is the seeds, and a seed draws by itself."""

        def draw(like: Tensor, keep: float) -> Tensor:
            pairs = zip(like, generators, strict=True)
            return torch.stack(
                [torch.bernoulli(each, keep, generator=generator) for each, generator in pairs]
            )

        for node in self.graph.graph.nodes:
            if str(node.target) == "aten.bernoulli.p":
                node.target = draw
        self.graph.recompile()

    def targets(self) -> list[str]:
        return [str(node.target) for node in self.graph.graph.nodes if node.op == "call_function"]


def loss_of(outputs: object) -> Tensor:
    """A number that depends on every element of nested outputs."""
    if isinstance(outputs, Tensor):
        return (
            outputs * torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)
        ).sum()
    return sum((loss_of(each) for each in outputs if each is not None), torch.zeros(()))


def stack(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
    """A different copy for every lane, (S, K, ...)."""
    spread = [each.detach()[None, None].repeat(SEEDS, TRIALS, *[1] * each.ndim) for each in tensors]
    return [each + 0.1 * torch.randn_like(each) if each.is_floating_point() else each for each in spread]


Trace = Callable[..., Lanes]
Loop = Callable[..., tuple[Tensor, list[Tensor], list[Tensor]]]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def trace_lanes() -> Trace:
    """Trace one step of all lanes: trials inside seeds, gradients included."""

    def trace(module: nn.Module, *inputs: Tensor) -> Lanes:
        names = [name for name, _ in module.named_parameters()]
        buffer_names = [name for name, _ in module.named_buffers()]
        parameters = stack(module, list(module.parameters()))
        buffers = [
            each.detach()[None, None].repeat(SEEDS, TRIALS, *[1] * each.ndim) for each in module.buffers()
        ]

        def lane(parameters, buffers, inputs):
            state = dict(zip(names, parameters, strict=True)) | dict(zip(buffer_names, buffers, strict=True))
            return loss_of(functional_call(module, state, inputs))

        trials = vmap(lane, in_dims=(0, 0, None), randomness="same")
        lanes = vmap(trials, in_dims=(0, 0, 0), randomness="different")

        def step(parameters, buffers, inputs):
            leaves = [each.detach().requires_grad_() for each in parameters]
            losses = lanes(leaves, buffers, inputs)
            return losses.detach(), list(torch.autograd.grad(losses.sum(), leaves))

        with LaneFunctions():
            graph = make_fx(step)(parameters, [each.clone() for each in buffers], inputs)
        return Lanes(graph, (parameters, buffers, inputs))

    return trace


@pytest.fixture
def loop_lanes() -> Loop:
    """Run the plain module lane by lane; a lane starts torch's generator from its seed."""

    def loop(module: nn.Module, lanes: Lanes, seeds: tuple[int, ...] | None = None):
        parameters, buffers, inputs = lanes.arguments
        names = [name for name, _ in module.named_parameters()]
        buffer_names = [name for name, _ in module.named_buffers()]
        losses, gradients, left = [], [], []
        for s in range(SEEDS):
            for k in range(TRIALS):
                leaves = [each[s, k].clone().requires_grad_() for each in parameters]
                mutable = [each[s, k].clone() for each in buffers]
                state = dict(zip(names, leaves, strict=True)) | dict(zip(buffer_names, mutable, strict=True))
                if seeds is not None:
                    torch.manual_seed(seeds[s])
                loss = loss_of(functional_call(module, state, tuple(each[s] for each in inputs)))
                losses.append(loss.detach())
                gradients.append(torch.autograd.grad(loss, leaves))
                left.append(mutable)

        def together(per_lane):
            return [torch.stack(each).unflatten(0, (SEEDS, TRIALS)) for each in zip(*per_lane, strict=True)]

        return torch.stack(losses).view(SEEDS, TRIALS), together(gradients), together(left)

    return loop


@pytest.fixture
def assert_equals_loop(trace_lanes: Trace, loop_lanes: Loop) -> Callable[..., Lanes]:
    """Assert that traced lanes equal the loop in losses, gradients and buffers."""

    def check(module: nn.Module, *inputs: Tensor, tolerance: float = 1e-10, seeds=None) -> Lanes:
        lanes = trace_lanes(module, *inputs)
        expected, actual = loop_lanes(module, lanes, seeds), lanes.run(seeds)
        for wanted, found in zip(expected, actual, strict=True):
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
        return lanes

    return check
