"""What a clipper recorded: exact, bounded, and never read back in the step."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tuner import Clipper
from tuner.inline import CliptuneWarning
from tuner.inline.errors import ClipperStateError
from tuner.inline.steps import FOLD_STEPS, Undrained
from tuner.methods import METHODS
from tuner.records import Phase
from tuner.training.trace import CAPACITY

#: Operators whose result the host waits for; `aten.item` and `tolist` end in the first.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_to_cpu")


class WaitingOperators(TorchDispatchMode):
    """Counts the operators that a device would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def weight_with_gradient(value: float = 1.0) -> nn.Parameter:
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([value])
    return weight


def run(clipper: Clipper, norms: list[float]) -> None:
    weight = weight_with_gradient()
    assert weight.grad is not None
    for norm in norms:
        weight.grad.fill_(norm)
        clipper([weight], loss=torch.tensor(norm / 10))


def setting_of(method: str) -> str:
    low = METHODS[method]
    threshold = low.threshold_high or 0.5
    return method if not low.has_threshold else f"{method}:{threshold}"


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(method: str) -> None:
    """Over a whole fold, the first call included, with a loss and with a batch of parameters."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    clipper = Clipper.from_setting(setting_of(method), reference_norm=1.0, run_steps=1000)
    loss = torch.tensor(1.0)
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    with WaitingOperators() as waiting:
        for _ in range(2 * FOLD_STEPS + 1):
            norm = clipper(model.parameters(), loss=loss)
            clipper.last  # noqa: B018
        assert waiting.seen == []
        norm.item()
        assert waiting.seen == ["_local_scalar_dense"], "the mode sees what it is here to see"


@pytest.mark.parametrize("num_steps", [1, 7, FOLD_STEPS, FOLD_STEPS + 3, 3 * FOLD_STEPS])
def test_record_says_what_happened(num_steps: int) -> None:
    norms = [1.0 + step % 4 for step in range(num_steps)]
    clipper = Clipper.from_setting("global_norm:2.5", run_steps=num_steps)
    run(clipper, norms)
    record = clipper.record()
    clipped = [step for step, norm in enumerate(norms) if norm > 2.5]
    assert clipper.num_steps == record.num_steps == num_steps
    assert record.clip_fraction == len(clipped) / num_steps
    assert record.first_clipped_step == (clipped[0] if clipped else None)
    assert record.last_clipped_step == (clipped[-1] if clipped else None)
    scales = [min(1.0, 2.5 / norm) for norm in norms]
    assert record.mean_scale == pytest.approx(sum(scales) / num_steps, rel=1e-6)
    assert record.norms is not None and record.loss is not None
    assert (record.norms.first, record.norms.min, record.norms.max) == (norms[0], min(norms), max(norms))
    assert record.loss.last == pytest.approx(norms[-1] / 10)
    assert sum(phase.num_steps for phase in record.phases) == num_steps
    assert record.phases[0].phase is Phase.WARM_UP
    assert (record.divergence_step, record.num_non_finite, record.num_skipped) == (None, 0, 0)


def test_reading_changes_nothing() -> None:
    norms = [1.0 + step % 5 for step in range(2 * FOLD_STEPS)]
    read, unread = (Clipper.from_setting("global_norm:2.5", run_steps=len(norms)) for _ in range(2))
    for start in range(0, len(norms), 100):
        run(read, norms[start : start + 100])
        read.record()
        read.drain_norms()
    run(unread, norms)
    assert read.record() == unread.record()


def test_without_the_length_of_a_run_there_are_no_phases() -> None:
    clipper = Clipper.from_setting("none")
    run(clipper, [1.0, 3.0])
    record = clipper.record()
    assert record.phases == ()
    assert record.loss is not None and record.loss.mean == pytest.approx(0.2)
    assert record.curve is not None and len(record.curve.losses) == 2


def test_drained_norms_are_told_once_and_only_if_finite() -> None:
    clipper = Clipper.from_setting("global_norm:1")
    run(clipper, [1.0, math.inf, 2.0, math.nan])
    assert clipper.drain_norms() == [1.0, 2.0]
    assert clipper.drain_norms() == []
    run(clipper, [3.0])
    assert clipper.drain_norms() == [3.0]
    assert clipper.record().num_non_finite == 2


def test_memory_is_bounded_and_what_is_left_out_is_evenly_spaced() -> None:
    num_steps = 5 * CAPACITY
    clipper = Clipper.from_setting("none")
    # The log is fed directly: what is tested is what it keeps, not how the norm is computed.
    for step in range(num_steps):
        clipper._log.add((torch.tensor(float(step)),), None)
    kept = sum(map(len, clipper._log._undrained._chunks)) + len(clipper._log._facts)
    assert kept <= CAPACITY + FOLD_STEPS
    assert clipper.drain_norms() == [float(step) for step in range(0, num_steps, 8)]
    record = clipper.record()
    assert record.norms is not None
    assert (record.num_steps, record.norms.max) == (num_steps, num_steps - 1)
    assert record.norms.median == pytest.approx(num_steps / 2, rel=1e-3)


def test_state_goes_on_where_it_was() -> None:
    norms = [1.0 + step % 5 for step in range(FOLD_STEPS + 50)]
    whole = Clipper.from_setting("zclip:1.5", run_steps=len(norms))
    first, second = (Clipper.from_setting("zclip:1.5", run_steps=len(norms)) for _ in range(2))
    run(whole, norms)
    run(first, norms[:100])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.num_steps == 100
    run(second, norms[100:])
    assert second.record() == whole.record()
    assert second.state_dict()["method"] == whole.state_dict()["method"]


def test_state_may_be_loaded_in_the_middle() -> None:
    one, other = (Clipper.from_setting("norm_growth:1.5") for _ in range(2))
    run(one, [1.0, 2.0, 3.0])
    weight = weight_with_gradient(8.0)
    other([weight])
    other.load_state_dict(one.state_dict())
    assert other.num_steps == 3 and other.record() == one.record()
    other([weight])
    assert other.last.clipped, "8 is more than 1.5 times what the other one's steps ended with"


def test_state_of_something_else_is_refused() -> None:
    clipper = Clipper.from_setting("zclip:2")
    with pytest.raises(ClipperStateError, match="it has no method, num_steps, record") as raised:
        clipper.load_state_dict({"setting": "zclip:2"})
    assert raised.value.code == "bad_clipper_state"
    with pytest.raises(ClipperStateError, match="it is of none, and this clipper is zclip:2"):
        clipper.load_state_dict(Clipper.from_setting("none").state_dict())
    state = Clipper.from_setting("zclip:2").state_dict()
    with pytest.raises(ClipperStateError, match="its record can't be read"):
        clipper.load_state_dict(state | {"record": {"live": torch.ones(1)}})
    stateless = Clipper.from_setting("global_norm:2")
    with pytest.raises(ClipperStateError, match="the method remembers nothing, got mean"):
        stateless.load_state_dict(stateless.state_dict() | {"method": {"mean": torch.ones(1)}})
    clipper.load_state_dict(state | {"method": {"mean": torch.ones(3)}})
    with pytest.raises(ClipperStateError, match="expected"):
        clipper([weight_with_gradient()])


class Recorded:
    """A monitor that keeps what it is told."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self._fails_at = fails_at

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if step == self._fails_at:
            raise OSError("no space left on device")
        self.told.append((step, dict(figures)))

    def close(self) -> None: ...


@pytest.mark.parametrize("every", [1, 3, FOLD_STEPS])
def test_monitor_is_told_every_so_many_steps(every: int) -> None:
    monitor = Recorded()
    clipper = Clipper.from_setting("global_norm:2.5", monitor=monitor, monitor_every=every)
    norms = [1.0 + step % 4 for step in range(2 * FOLD_STEPS + 1)]
    run(clipper, norms)
    assert [step for step, _ in monitor.told] == list(range(every, len(norms) + 1, every))
    for step, figures in monitor.told:
        norm, since = norms[step - 1], norms[step - every : step]
        assert figures == pytest.approx(
            {
                "pre_clip_norm": norm,
                "post_clip_norm": min(norm, 2.5),
                "scale": min(1.0, 2.5 / norm),
                "clip_fraction": sum(each > 2.5 for each in since) / every,
                "train_loss": norm / 10,
            },
            rel=1e-5,
        )


def test_monitor_waits_once_for_all_figures() -> None:
    clipper = Clipper.from_setting("value:0.5", monitor=Recorded(), monitor_every=5)
    with WaitingOperators() as waiting:
        run(clipper, [1.0] * 4)
        assert waiting.seen == []
        run(clipper, [1.0])
    assert waiting.seen.count("_local_scalar_dense") <= 5, (
        "one list, which a CPU tensor gives number by number"
    )


def test_monitor_without_losses_is_not_told_any() -> None:
    monitor = Recorded()
    Clipper.from_setting("none", monitor=monitor, monitor_every=1)([weight_with_gradient(3.0)])
    assert monitor.told == [
        (1, {"pre_clip_norm": 3.0, "post_clip_norm": 3.0, "scale": 1.0, "clip_fraction": 0.0})
    ]


def test_monitor_that_breaks_is_let_go_and_training_goes_on() -> None:
    monitor = Recorded(fails_at=2)
    clipper = Clipper.from_setting("none", monitor=monitor, monitor_every=1)
    with pytest.warns(CliptuneWarning, match=r"not told any more, it failed at step 2: OSError\('no space"):
        run(clipper, [1.0, 2.0, 3.0])
    assert (clipper.num_steps, [step for step, _ in monitor.told]) == (3, [1])


def test_sparse_norms_hold_nothing_but_themselves() -> None:
    """Many steps without a `drain_norms`: what is left out is not held, and a fold takes no longer than the first."""
    kept = Undrained()
    for _ in range(400):
        kept.add(torch.ones(64 * FOLD_STEPS))
    assert kept._stride > FOLD_STEPS
    for _ in range(400):
        kept.add(torch.ones(FOLD_STEPS))
    assert all(len(each) > 0 for each in kept._chunks)
    assert sum(each.untyped_storage().nbytes() for each in kept._chunks) <= 4 * 2 * CAPACITY


def test_state_of_another_type_or_device_goes_on_beside_the_gradients() -> None:
    first, second = (Clipper.from_setting("zclip:1.5") for _ in range(2))
    weight = torch.nn.Parameter(torch.ones(2))
    for clipper in (first, second):
        weight.grad = torch.ones(2)
        clipper([weight])
    state = first.state_dict()
    types = {name: rows.dtype for name, rows in state["method"].items()}
    state["method"] = {name: rows.double() for name, rows in state["method"].items()}
    second.load_state_dict(state)
    assert {name: rows.dtype for name, rows in second.state_dict()["method"].items()} == types
