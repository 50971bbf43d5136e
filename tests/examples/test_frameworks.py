"""The examples of the frameworks run as they stand, each as the program that ``cliptune run`` would start."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pytest
from warm import warm_process

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


class LinesOf(Protocol):
    """The JSON lines that an example prints."""

    def __call__(self, name: str, *options: str) -> list[dict[str, Any]]: ...


@pytest.fixture(scope="module")
def lines_of() -> Iterator[LinesOf]:
    """Runs examples as programs that find torch imported; each way of running one is tried once."""
    with warm_process() as warm:

        @cache
        def run(name: str, *options: str) -> list[dict[str, Any]]:
            return read_lines(warm.run(EXAMPLES / name, "--quick", *options))

        yield run


def read_lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def require_training(lines: list[dict[str, Any]], steps: list[int]) -> None:
    """Each line once, with an objective and a norm, and a loss that falls."""
    assert [line["step"] for line in lines] == steps
    assert all(math.isfinite(line["val_loss"]) and line["grad_norm"] > 0 for line in lines)
    assert lines[-1]["val_loss"] < lines[0]["val_loss"]


def test_lightning_callback(lines_of: LinesOf) -> None:
    clipped = lines_of("lightning_callback.py", "--clip", "global_norm:0.35", "--seed", "1")
    require_training(clipped, [10, 20, 30, 40])
    assert min(line["grad_norm"] for line in clipped) > 0.35, "norms before clipping"


def test_hf_trainer(lines_of: LinesOf) -> None:
    clipped = lines_of("hf_trainer.py", "--clip", "global_norm:0.1", "--seed", "1")
    require_training(clipped, [3, 6, 9, 12])
    assert min(line["grad_norm"] for line in clipped) > 0.1, "norms before clipping"


def test_accelerate_loop(lines_of: LinesOf) -> None:
    clipped = lines_of("accelerate_loop.py", "--clip", "global_norm:0.35", "--seed", "1")
    require_training(clipped, [10, 20, 30, 40])
    assert min(line["grad_norm"] for line in clipped) > 0.35, "norms before clipping"


def test_ddp_on_two_ranks_prints_each_line_once() -> None:
    command = [sys.executable, *TORCHRUN, str(EXAMPLES / "ddp.py"), "--quick", "--clip", "global_norm:0.35"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    require_training(read_lines(done), [10, 20, 30, 40])


@pytest.mark.parametrize("setting", ["none", "skip_step:6"])
def test_ddp_on_one_process(lines_of: LinesOf, setting: str) -> None:
    require_training(lines_of("ddp.py", "--clip", setting), [10, 20, 30, 40])


def test_seed_and_setting_change_the_training(lines_of: LinesOf) -> None:
    settings = (("--clip", "none"), ("--clip", "global_norm:0.35"), ("--clip", "none", "--seed", "1"))
    assert len({json.dumps(lines_of("ddp.py", *options)) for options in settings}) == 3


def test_lora_lanes_share_the_backbone(lines_of: LinesOf) -> None:
    answer, memory = lines_of("lora_lanes.py")
    assert answer["path"] == "lanes, 8 at once"
    # The goal is 1.5; batches add activations, which are told apart.
    assert 0.5 < memory["adapters_at_rest_times_share"] < memory["adapters_at_peak_times_share"] <= 1.5
    assert memory["backbone_bytes"] > memory["adapter_share_bytes"]
    assert memory["batch_at_peak_bytes"] > memory["batch_activation_bytes"] > 0
