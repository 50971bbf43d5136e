"""A part of a cohort in a real training process: it waits, survives being killed, and refuses what is no decision."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.launchers.local import TRAINER
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Broken, Done, Message, PathWanted
from tuner.spec import OFF_SETTING, ClipSetting
from tuner.training.cohort import Cohort, CohortTrial, EngineChosen, PartReached, Progressed, TrialEnded
from tuner.workloads.registrations import BUILT_IN, Registrations, parse_registrations

COHORT = Cohort(
    workload="digits-mlp",
    parameters={},
    trials=(
        CohortTrial(id="a", setting=OFF_SETTING, protected=True),
        CohortTrial(id="b", setting=ClipSetting.parse("global_norm:0.5")),
    ),
    seeds=(0, 1),
    rung_steps=(2, 4, 6),
    divergence_factor=3.0,
    lanes=100,
)

FOLDER = str(Path(__file__).parent)
REGISTERED = Registrations([*BUILT_IN, *parse_registrations("faulty=faulty:train", source="a test")])
COMMAND = (*TRAINER, "--workloads", json.dumps(REGISTERED.to_json()))

Launch = Callable[[], TrainingProcess]


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    started: list[TrainingProcess] = []

    def start() -> TrainingProcess:
        started.append(TrainingProcess(COMMAND, threads=1, kill_grace_seconds=5.0, import_from=(FOLDER,)))
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture(scope="module")
def process(launch: Launch) -> TrainingProcess:
    return launch()


def part_in(folder: Path) -> dict[str, object]:
    return {"kind": "cohort", "cohort": COHORT.to_json(), "checkpoints": str(folder), "is_part": True}


def told_until(process: TrainingProcess, *kinds: type[Message]) -> list[Message]:
    """What is told up to a message of some kind, without progress and the process's greeting."""
    found: list[Message] = []
    while not found or not isinstance(found[-1], kinds):
        message = process.receive(120)
        assert message is not None, f"silence behind {found}"
        if not isinstance(message, Progressed) and message.kind != "ready":
            found.append(message)
    return found


def decide(process: TrainingProcess, index: int, *pruned: str) -> None:
    process.send({"kind": "decision", "index": index, "pruned": list(pruned)})


def kinds(told: list[Message]) -> list[str]:
    return [message.kind for message in told]


def results(told: list[Message]) -> list[TrialEnded]:
    return [
        dataclasses.replace(
            message, lanes=tuple(dataclasses.replace(lane, seconds=0.0) for lane in message.lanes)
        )
        for message in told
        if isinstance(message, TrialEnded)
    ]


def test_part_waits_at_each_rung_for_its_decision(process: TrainingProcess, tmp_path: Path) -> None:
    process.send(part_in(tmp_path))
    assert kinds(told_until(process, PartReached)) == ["engine", "checkpoint", "part"]
    assert process.receive(0.5) is None, "it waits"
    decide(process, 0)
    assert kinds(told_until(process, PartReached)) == ["checkpoint", "part"]
    decide(process, 1, "b", "a trial of another part")
    rest = told_until(process, Done, Broken)
    assert kinds(rest) == ["trial", "part", "trial", "done"]
    assert [(message.trial_id, message.state) for message in results(rest)] == [
        ("b", "pruned"),
        ("a", "complete"),
    ]


def test_part_killed_while_it_waits_goes_on_in_another_process(
    process: TrainingProcess, launch: Launch, tmp_path: Path
) -> None:
    told: dict[str, list[Message]] = {}
    for name in ("undisturbed", "killed"):
        current = process if name == "undisturbed" else launch()
        current.send(part_in(tmp_path / name))
        told_until(current, PartReached)
        decide(current, 0)
        before = told_until(current, PartReached)[-1]
        if name == "killed":
            current.stop()
            current = process
            current.send(part_in(tmp_path / name))
            again = told_until(current, PartReached)
            assert kinds(again) == ["engine", "resumed", "part"]
            assert again[-1] == before
        decide(current, 1, "b")
        told[name] = told_until(current, Done, Broken)
    assert results(told["killed"]) == results(told["undisturbed"])
    assert len(results(told["killed"])) == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"kind": "decision", "index": 1, "pruned": []}, "rung 0 was sent the decision of rung 1"),
        ({"kind": "path", "path": "solo"}, "decision of rung 0 was sent the path of its cohort"),
        ({"kind": "describe"}, "decision of rung 0 was sent the request 'describe'"),
    ],
)
def test_anything_but_its_decision_breaks_a_part_that_waits(
    process: TrainingProcess, tmp_path: Path, line: dict[str, object], problem: str
) -> None:
    process.send(part_in(tmp_path))
    told_until(process, PartReached)
    process.send(line)
    (broken,) = told_until(process, Done, Broken)
    assert isinstance(broken, Broken)
    assert broken.cause == "bug"
    assert problem in broken.detail


@pytest.mark.parametrize("path", ["solo", "lanes", None])
def test_part_asks_before_it_measures_how_lanes_train(
    process: TrainingProcess, tmp_path: Path, path: str | None
) -> None:
    cohort = dataclasses.replace(COHORT, lanes="auto")
    process.send(part_in(tmp_path) | {"cohort": cohort.to_json()})
    assert kinds(told_until(process, PathWanted)) == ["path_wanted"]
    assert process.receive(0.3) is None, "it waits"
    process.send({"kind": "path", "path": path})
    (chosen,) = told_until(process, EngineChosen)
    assert isinstance(chosen, EngineChosen)
    told_until(process, PartReached)
    if path is None:
        assert chosen.reason.endswith("as one lane at a time") or chosen.reason.startswith("one lane at a")
    else:
        assert (chosen.path, chosen.reason) == (path, "as it was measured for the cohort's other parts")
    decide(process, 0)
    told_until(process, PartReached)
    decide(process, 1)
    assert len(results(told_until(process, Done, Broken))) == 2


def test_part_that_waits_for_its_path_breaks_at_anything_else(
    process: TrainingProcess, tmp_path: Path
) -> None:
    cohort = dataclasses.replace(COHORT, lanes="auto")
    process.send(part_in(tmp_path) | {"cohort": cohort.to_json()})
    told_until(process, PathWanted)
    decide(process, 0)
    (broken,) = told_until(process, Done, Broken)
    assert isinstance(broken, Broken)
    assert "a part that waits for the path of its cohort was sent the decision of rung 0" in broken.detail


def test_decision_that_nobody_waits_for_is_told(process: TrainingProcess) -> None:
    decide(process, 2)
    (broken,) = told_until(process, Done, Broken)
    assert isinstance(broken, Broken)
    assert "no part waits for the decision of rung 2" in broken.detail


def test_path_that_nobody_waits_for_is_told(process: TrainingProcess) -> None:
    process.send({"kind": "path", "path": "solo"})
    (broken,) = told_until(process, Done, Broken)
    assert isinstance(broken, Broken)
    assert "no part waits for the path of its cohort" in broken.detail


def test_training_function_is_never_a_part(process: TrainingProcess, tmp_path: Path) -> None:
    cohort = dataclasses.replace(COHORT, workload="faulty", rung_steps=(2, 5))
    process.send(part_in(tmp_path) | {"cohort": cohort.to_json()})
    told = told_until(process, Done, Broken)
    assert isinstance(told[-1], Done), "it waited for no decision"
    assert len(results(told)) == 2
    assert not [message for message in told if isinstance(message, PartReached)]
