"""Every clipper on a GPU: nothing waits for the device, and a recorded graph replays the step."""

from __future__ import annotations

import pytest
import torch

from tuner.clippers import create_clipper
from tuner.lanes import Layout
from tuner.methods import METHODS
from tuner.spec import ClipSetting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LAYOUT = Layout(("weight", "bias"), ((4, 3), (4,)))
NUM_LANES = 3


def setting(method: str) -> ClipSetting:
    known = METHODS[method]
    if not known.has_threshold:
        return ClipSetting(method=method)
    return ClipSetting(method=method, threshold=known.at_coordinate(0.5))


@pytest.mark.parametrize("method", METHODS)
def test_step_reads_nothing_back_and_replays_from_a_graph(method: str) -> None:
    clipper = create_clipper([setting(method)] * NUM_LANES, LAYOUT, reference_norm=1.0, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    steps = torch.randn(80, NUM_LANES, LAYOUT.num_parameters, device="cuda", generator=generator)
    steps[70] *= 20
    weights = torch.randn(NUM_LANES, LAYOUT.num_parameters, device="cuda", generator=generator)
    loss = torch.ones(NUM_LANES, device="cuda")

    clipper.clip(steps[0], clipper.initial_state(weights), weights=weights, loss=loss)  # loads libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        eager, state = [], clipper.initial_state(weights)
        for grads in steps:
            result = clipper.clip(grads, state, weights=weights, loss=loss)
            state = result.state
            eager.append(result.grads)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    grads = torch.zeros_like(steps[0])
    kept = {name: rows.clone() for name, rows in clipper.initial_state(weights).items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = clipper.clip(grads, kept, weights=weights, loss=loss)
        for name, rows in result.state.items():
            kept[name].copy_(rows)
    replayed = []
    for step in steps:
        grads.copy_(step)
        graph.replay()
        replayed.append(result.grads.clone())
    torch.testing.assert_close(torch.stack(replayed), torch.stack(eager), rtol=0, atol=0)
