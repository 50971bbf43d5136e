"""Running out of memory is recognised as each device tells it, and survived."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tuner.training.memory import is_out_of_memory, release_memory

TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_ended_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("can't allocate memory"), OSError()]
)
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_torch_still_says_it_this_way() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert is_out_of_memory(caught.value)


def test_release_of_nothing_is_harmless() -> None:
    release_memory(torch.device("cpu"))


# The model's activations need several times 32 MiB per lane. What the process holds so far and 450 MiB more are
# allowed, so that a few of the sixteen lanes fit, and the batch must be cut.
SCRIPT = """
import resource, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from toys import *

def wide(model, batch):
    hidden = model(batch[0])
    return (hidden.expand(-1, 2**20).tanh().mean(1) - batch[1].squeeze(1)).square().mean()

cohort = cohort_of(*[f"global_norm:{{c}}" for c in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)], rung_steps=(2,), lanes=64)
make = lambda: workload_of(loss=wide, validation=[regression(0, torch.Generator().manual_seed(1), 1)])
free = trained(SoloEngine(cohort, make()), cohort)
torch.ones(2**20).sum()
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + 450 * 2**20, resource.RLIM_INFINITY))
engine = AutoEngine(cohort, make())
found = trained(engine, cohort)
assert_close(found, free, tolerance=1e-4)
print(engine.choice.path, engine._engine.num_lanes if engine.choice.path == "lanes" else 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_real_end_of_memory_costs_lanes_and_no_result() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(tests=str(TESTS))], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    path, num_lanes = done.stdout.split()[-2:]
    assert path == "lanes"
    assert 2 <= int(num_lanes) < 16
