"""A study's trainings on a monitor: one run per lane, complete and in the order of the steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from monitor_files import tensorboard_figures

from tuner.evidence import LaneResult, NormSketch, Phase, PhaseSketch, Trial, TrialState
from tuner.inline.errors import CliptuneWarning
from tuner.monitoring import TrialMonitors, lane_figures
from tuner.monitors import MonitorError, open_monitor
from tuner.records import LossCurve
from tuner.spec import ClipSetting
from tuner.training.cohort import Event, LaneValue, Progressed, RungReached, TrialEnded
from tuner.tuning import tune


class Run:
    """A monitor that keeps its run; closed ones may not be told anything."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[tuple[int, dict[str, float]]] = []
        self.is_closed = False

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        assert not self.is_closed
        self.told.append((step, dict(figures)))

    def close(self) -> None:
        self.is_closed = True


class Runs(list[Run]):
    def open(self, name: str) -> Run:
        assert all(run.is_closed for run in self), "one run is open at a time"
        self.append(Run(name))
        return self[-1]


def lane(seed: int = 0, **changes: object) -> LaneResult:
    norms = NormSketch(median=1.0, q90=2.0, q99=3.0, max=4.0, q01=0.1, q10=0.5)
    sketches = tuple(
        PhaseSketch(phase=phase, num_steps=5, clip_fraction=share, mean_scale=1 - share / 2, norms=norms)
        for phase, share in ((Phase.WARM_UP, 1.0), (Phase.EARLY, 0.5))
    )
    known: dict[str, object] = {
        "seed": seed, "num_steps": 10, "value": 1.5, "divergence_step": None, "clip_fraction": 0.75,
        "mean_scale": 0.625, "norms": norms, "num_non_finite": 0, "seconds": 0.1, "initial": 9.0,
        "phases": sketches, "curve": LossCurve(stride=5, losses=(4.0, None)),
    }  # fmt: skip
    return LaneResult(**known | changes)  # type: ignore[arg-type]


QUANTILES = {"q01": 0.1, "q10": 0.5, "median": 1.0, "q90": 2.0, "q99": 3.0, "max": 4.0}
NORMS = {f"pre_clip_norm_{name}": value for name, value in QUANTILES.items()}


def test_lane_is_shown_with_everything_that_is_known() -> None:
    assert lane_figures(lane(), {5: 2.0, 10: 1.5}, objective="val_loss") == [
        (0, {"val_loss": 9.0}),
        (2, {"train_loss": 4.0}),
        (5, {"val_loss": 2.0, "clip_fraction": 1.0, "scale": 0.5, **NORMS}),
        (10, {"val_loss": 1.5, "clip_fraction": 0.5, "scale": 0.75, **NORMS}),
    ]


def test_what_was_not_told_is_left_out() -> None:
    silent = lane(
        phases=(), curve=None, initial=None, norms=None, clip_fraction=None, mean_scale=None, value=None
    )
    assert lane_figures(silent, {5: 2.0, 10: None}, objective="val_loss") == [(5, {"val_loss": 2.0})]
    whole = lane(phases=(), curve=None, initial=None)
    assert lane_figures(whole, {}, objective="o") == [(10, {"clip_fraction": 0.75, "scale": 0.625})]
    empty = PhaseSketch(phase=Phase.WARM_UP, num_steps=1, clip_fraction=0.0, mean_scale=1.0, norms=None)
    few = lane(phases=(empty,), curve=None, initial=None)
    assert lane_figures(few, {}, objective="o") == [(1, {"clip_fraction": 0.0, "scale": 1.0})]


def rung(step: int, *values: tuple[str, int, float | None]) -> RungReached:
    told = tuple(LaneValue(trial_id=trial, seed=seed, value=value) for trial, seed, value in values)
    return RungReached(index=0, step=step, values=told, pruned=())


def test_runs_are_named_after_number_setting_and_seed() -> None:
    runs = Runs()
    monitors = TrialMonitors(runs.open, objective="val_loss")
    setting = ClipSetting.parse("global_norm:0.35")
    monitors.expect([Trial(id="a", number=4, cohort=1, setting=setting)])
    for event in (
        rung(5, ("a", 0, 2.0), ("a", 1, 3.0), ("b", 0, 7.0)),
        Progressed(lane_steps=1, total_lane_steps=2, step=1),
        # Told again, as after a restart from a checkpoint.
        rung(5, ("a", 0, 2.5), ("a", 1, 3.0)),
        TrialEnded(trial_id="a", state="pruned", lanes=(lane(0, curve=None), lane(1, curve=None))),
        TrialEnded(trial_id="b", state="complete", lanes=(lane(0),)),
    ):
        monitors(event)
    assert [run.name for run in runs] == [
        "4 global_norm:0.35 seed 0",
        "4 global_norm:0.35 seed 1",
        "b seed 0",
    ]
    assert all(run.is_closed for run in runs)
    assert [dict(run.told)[5]["val_loss"] for run in runs] == [2.5, 3.0, 7.0]


def test_rungs_from_before_a_takeover_are_shown_too() -> None:
    runs = Runs()
    monitors = TrialMonitors(runs.open, objective="val_loss")
    begun = Trial(
        id="a",
        number=0,
        cohort=0,
        setting=ClipSetting(method="none"),
        state=TrialState.RUNNING,
        rungs={5: {0: 3.0, 1: None}},
    )
    ended = Trial(id="c", number=1, cohort=0, setting=ClipSetting(method="none"), state=TrialState.COMPLETE)
    monitors.expect([begun, ended])
    monitors(rung(10, ("a", 0, 2.0)))
    monitors(TrialEnded(trial_id="a", state="complete", lanes=(lane(0, curve=None, phases=()),)))
    assert [(step, told["val_loss"]) for step, told in runs[0].told if "val_loss" in told] == [
        (0, 9.0),
        (5, 3.0),
        (10, 2.0),
    ]
    assert monitors._rungs == {} and monitors._known == {}, "nothing is kept of what has ended"


def test_run_is_closed_where_the_monitor_breaks() -> None:
    class Broken(Run):
        def log(self, step: int, figures: Mapping[str, float]) -> None:
            raise OSError("no space left on device")

    run = Broken("x")
    monitors = TrialMonitors(lambda name: run)
    with pytest.raises(OSError, match="no space"):
        monitors(TrialEnded(trial_id="a", state="complete", lanes=(lane(),)))
    assert run.is_closed


@pytest.mark.parametrize("lanes", ["solo", 8])
def test_real_study_is_on_tensorboard(tmp_path: Path, lanes: str | int) -> None:
    monitors = TrialMonitors(
        lambda run: open_monitor(f"tensorboard:{tmp_path}", run=run), objective="val_loss"
    )
    events: list[Event] = []

    def tell(event: Event) -> None:
        events.append(event)
        monitors(event)

    tune(
        "digits-mlp",
        num_trials=3,
        num_seeds=2,
        num_steps=40,
        num_confirm_seeds=0,
        lanes=lanes,
        on_event=tell,
    )
    ended = [event for event in events if isinstance(event, TrialEnded)]
    assert len(ended) == 3
    for trial in ended:
        for one in trial.lanes:
            found = tensorboard_figures(tmp_path / f"{trial.trial_id}_seed_{one.seed}")
            assert found["val_loss"][0] == pytest.approx(one.initial)
            assert found["val_loss"][one.num_steps] == pytest.approx(one.value)
            assert one.curve is not None
            assert found["train_loss"] == pytest.approx(
                {round(step): loss for step, loss in one.curve.points(one.num_steps)}
            )
            assert sorted(found["pre_clip_norm_median"].values()) == pytest.approx(
                sorted(phase.norms.median for phase in one.phases if phase.norms)
            )
            assert len(found["clip_fraction"]) == len(found["scale"]) == len(one.phases)


def test_library_call_shows_its_trials_by_number_and_setting(tmp_path: Path) -> None:
    study = {"num_trials": 2, "num_seeds": 2, "num_steps": 6, "num_confirm_seeds": 0, "lanes": "solo"}
    found = tune("digits-mlp", monitor=f"tensorboard:{tmp_path}", **study)  # type: ignore[arg-type]
    names = {folder.name for folder in tmp_path.iterdir()}
    assert {"0_none_seed_0", "0_none_seed_1"} < names and len(names) == 4
    assert all(name.startswith(("0_none_", "1_global_norm:")) for name in names)
    assert tensorboard_figures(tmp_path / "0_none_seed_0")[found.objective].keys() >= {0, 6}
    with pytest.raises(MonitorError, match="monitor 'runs' is of no known kind"):
        tune("digits-mlp", monitor="runs", **study)  # type: ignore[arg-type]


def test_monitor_that_breaks_does_not_end_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(text: str, *, run: str) -> Run:
        raise OSError(f"{text} is gone")

    monkeypatch.setattr("tuner.tuning.open_monitor", gone)
    study = {"num_trials": 2, "num_seeds": 2, "num_steps": 6, "num_confirm_seeds": 0, "lanes": "solo"}
    with pytest.warns(CliptuneWarning, match="are not shown on the monitor any more") as told:
        found = tune("digits-mlp", monitor=f"tensorboard:{tmp_path}", **study)  # type: ignore[arg-type]
    assert found.num_trials == 2
    assert len([each for each in told if each.category is CliptuneWarning]) == 1
