"""A training function in a real training process: each way to misbehave has its cause, and costs its own trial."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.errors import TrainingError
from service.launchers.local import LocalLauncher
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Catalogue, Message
from service.worker.training import Training, require_belonging
from tuner.evidence import LaneRecord, LaneResult
from tuner.spec import OFF_SETTING, ClipSetting
from tuner.training.cohort import (
    Cohort,
    CohortTrial,
    EngineChosen,
    LaneStarted,
    ProbeMeasured,
    Progressed,
    RungReached,
    TrialEnded,
)
from tuner.workloads.registrations import Registrations, parse_registrations

FOLDER = str(Path(__file__).parent)
RECORD = LaneRecord(
    num_steps=10, divergence_step=None, clip_fraction=0.0, mean_scale=1.0, norms=None, num_non_finite=0
)
GOOD, BAD = "global_norm:1", "global_norm:8"
STALL_SECONDS = 3.0


class Quiet:
    """Signals that ask for nothing."""

    def check(self) -> None:
        """Go on."""


@pytest.fixture
def training() -> Iterator[Training]:
    """A training side whose processes know `faulty.train`."""
    launcher = LocalLauncher(
        threads=1,
        kill_grace_seconds=2,
        registrations=Registrations(parse_registrations("faulty=faulty:train", source="a test")),
        import_from=(FOLDER,),
    )
    started: list[TrainingProcess] = []

    def launch() -> TrainingProcess:
        started.append(launcher.launch())
        return started[-1]

    yield Training(launch, stall_seconds=240, signals=Quiet(), on_ready=lambda ready: None)
    for process in started:
        process.stop()


def cohort_of(fault: str) -> Cohort:
    """*off* and two thresholds; the larger one's trial misbehaves."""
    settings = (OFF_SETTING, ClipSetting.parse(GOOD), ClipSetting.parse(BAD))
    return Cohort(
        workload="faulty",
        parameters={"fault": fault},
        trials=tuple(CohortTrial(id=str(each), setting=each, protected=each.is_off) for each in settings),
        seeds=(0, 1),
        rung_steps=(5, 10),
        divergence_factor=3.0,
    )


def told_by(training: Training, cohort: Cohort) -> tuple[list[Message], TrainingError | None]:
    """What a cohort told, as the runner would take it, and how it broke."""
    told: list[Message] = []
    try:
        for batch in training.answers({"kind": "cohort", "cohort": cohort.to_json(), "checkpoints": None}):
            require_belonging(cohort, batch)
            told += batch
    except TrainingError as error:
        return told, error
    return told, None


def ended(told: list[Message]) -> dict[str, TrialEnded]:
    return {message.trial_id: message for message in told if isinstance(message, TrialEnded)}


@pytest.mark.parametrize(
    ("fault", "cause", "says"),
    [
        (
            "raise",
            "bug",
            f"trial {BAD} with seed 0 failed at step 3: ValueError: the batch has the wrong shape",
        ),
        ("sys_exit", "bug", "ended the program with sys.exit(5)"),
        ("os_exit", "bug", "the training process ended with exit code 3"),
        ("hang", "stall", "said nothing for 3 s"),
        ("killed", "device_lost", "killed by SIGKILL, which was not ours"),
        ("swallow", "bug", "let TrialPruned pass"),
        ("input", "bug", "EOFError"),
    ],
)
def test_fault_has_its_cause_and_names_its_trial(
    training: Training, fault: str, cause: str, says: str
) -> None:
    if fault == "hang":
        # What is imported in the first step takes its time too, on a loaded machine.
        assert told_by(training, cohort_of("none"))[1] is None
        training._stall_seconds = STALL_SECONDS
    told, error = told_by(training, cohort_of(fault))
    assert error is not None
    assert (error.cause, error.trial_id) == (cause, BAD)
    assert says in str(error)
    assert set(ended(told)) == {"none", GOOD}
    lanes = [message for message in told if isinstance(message, LaneStarted)]
    assert lanes[-1] == LaneStarted(trial_id=BAD, seed=0)


@pytest.mark.parametrize("fault", ["none", "fork", "fork_exec"])
def test_what_is_odd_and_no_fault_costs_nothing(training: Training, fault: str) -> None:
    told, error = told_by(training, cohort_of(fault))
    assert error is None
    assert {each.state for each in ended(told).values()} == {"complete"}
    kinds = [type(message) for message in told if isinstance(message, LaneStarted | TrialEnded)]
    assert kinds == [LaneStarted, LaneStarted, TrialEnded] * 3
    assert len([message for message in told if isinstance(message, EngineChosen)]) == 1
    # The process still answers: a fork that came back would answer too.
    assert [type(each) for batch in training.answers({"kind": "describe"}) for each in batch] == [Catalogue]


def test_nan_is_divergence_and_no_failure(training: Training) -> None:
    told, error = told_by(training, cohort_of("nan"))
    assert error is None
    bad = ended(told)[BAD]
    assert [(lane.value, lane.divergence_step) for lane in bad.lanes] == [(None, 4)]
    assert bad.state == "pruned"
    assert [
        message.step for message in told if isinstance(message, RungReached) and BAD in message.pruned
    ] == [5]


def test_a_gigabyte_of_output_fills_no_memory_and_holds_nothing_up(training: Training) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told, error = told_by(training, cohort_of("print"))
    assert error is None
    assert ended(told)[BAD].state == "complete"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_probe_of_a_function_is_measured_in_the_process(training: Training) -> None:
    request = {"kind": "probe", "workload": "faulty", "parameters": {}, "seeds": [0, 1], "num_steps": 60}
    *alive, message = [each for batch in training.answers(request) for each in batch]
    assert isinstance(message, ProbeMeasured)
    assert {type(each) for each in alive} == {Progressed}
    assert message.reference.num_batches == 100
    assert message.reference.features is not None and message.reference.features.optimizer == "sgd"


def test_blame_ends_with_the_trial(training: Training) -> None:
    _, error = told_by(training, cohort_of("raise"))
    assert error is not None and error.trial_id == BAD
    with pytest.raises(TrainingError) as caught:
        list(training.answers({"kind": "probe", "workload": "no-such", "parameters": {}, "seeds": [0]}))
    assert caught.value.trial_id is None


def test_events_of_another_trial_or_of_seeds_left_out_are_refused() -> None:
    cohort = cohort_of("none")
    lanes = {
        seed: LaneResult.of(RECORD, seed=seed, value=1.0, divergence_step=None, seconds=0.0)
        for seed in (0, 1)
    }

    def ending(state: str, *seeds: int) -> TrialEnded:
        return TrialEnded(trial_id=GOOD, state=state, lanes=tuple(lanes[seed] for seed in seeds))

    for sound in (ending("complete", 0, 1), ending("pruned", 0, 1), ending("pruned", 0)):
        require_belonging(cohort, [sound, LaneStarted(trial_id=GOOD, seed=1)])
    for odd in (
        ending("complete", 0),
        ending("pruned"),
        ending("pruned", 1),
        ending("pruned", 1, 0),
        LaneStarted(trial_id="another", seed=0),
        LaneStarted(trial_id=GOOD, seed=2),
    ):
        with pytest.raises(TrainingError, match="is not of its cohort") as caught:
            require_belonging(cohort, [odd])
        assert caught.value.cause == "bad_output"


# ---- registrations of a process ----


@pytest.fixture
def launch() -> Iterator[Callable[..., tuple[LocalLauncher, TrainingProcess]]]:
    started: list[TrainingProcess] = []

    def start(registered: str, **options: object) -> tuple[LocalLauncher, TrainingProcess]:
        known = Registrations(parse_registrations(registered, source="CLIPTUNE_WORKLOADS"))
        launcher = LocalLauncher(threads=1, kill_grace_seconds=2, registrations=known, **options)  # type: ignore[arg-type]
        started.append(launcher.launch())
        return launcher, started[-1]

    yield start
    for process in started:
        process.stop()


def test_catalogue_has_what_can_be_used_and_why_the_rest_can_not(launch) -> None:
    launcher, process = launch(
        "good=faulty:train,gone=faulty:nothing,lost=no_such_module:train", import_from=[FOLDER]
    )
    found = launcher.describe(process, 60)
    assert [(each.name, each.objective) for each in found.workloads] == [("good", "val_loss")]
    assert found.workloads[0].parameters[0].choices is not None
    assert [(each.name, each.target) for each in found.refused] == [
        ("gone", "faulty:nothing"),
        ("lost", "no_such_module:train"),
    ]
    assert "has no attribute 'nothing'" in found.refused[0].reason


@pytest.mark.parametrize(
    ("module", "seconds", "says"),
    [
        ("import os\nos._exit(6)\n", 30, "the training process ended with exit code 6"),
        ("import time\ntime.sleep(600)\n", 15, "did not name its workloads within 15 s"),
    ],
)
def test_import_that_takes_the_process_with_it_is_refused_alone(
    launch, tmp_path: Path, module: str, seconds: float, says: str
) -> None:
    (tmp_path / "deadly.py").write_text(module)
    launcher, process = launch("deadly=deadly:train,good=faulty:train", import_from=[FOLDER, str(tmp_path)])
    if "_exit" in module:
        with pytest.raises(TrainingError, match="exit code 6"):
            launcher.describe(process, 60)
    found = launcher.describe_apart(seconds)
    assert [each.name for each in found.workloads] == ["good"]
    assert [each.name for each in found.refused] == ["deadly"]
    assert says in found.refused[0].reason


def test_fork_that_comes_back_tells_nothing(launch, tmp_path: Path) -> None:
    (tmp_path / "forking.py").write_text("import os\nos.fork()\ndef train(trial):\n    'Forks.'\n")
    _, process = launch("forking=forking:train", import_from=[str(tmp_path)])
    process.send({"kind": "describe"})
    process.send({"kind": "describe"})
    kinds = []
    while kinds.count("done") < 2:
        if (message := process.receive(1)) is not None:
            kinds.append(message.kind)
    assert process.receive(1) is None
    assert kinds == ["ready", "catalogue", "done", "catalogue", "done"]


def test_installation_that_describes_nothing_is_an_error(launch, tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text("import os\nos._exit(6)\n")
    launcher, _ = launch("deadly=deadly:train", import_from=[str(tmp_path)])
    with pytest.raises(TrainingError, match="exit code 6"):
        launcher.describe_apart(60)


def test_no_registration_is_an_empty_catalogue(launch) -> None:
    launcher, process = launch("")
    assert launcher.describe(process, 60) == Catalogue(workloads=(), refused=())
    process.send({"kind": "probe", "workload": "digits-mlp", "parameters": {}, "seeds": [0]})
    broken = process.receive(60)
    assert broken is not None and broken.kind == "broken"
    assert "no workload is called 'digits-mlp'" in broken.detail


def test_relative_folders_of_pythonpath_are_found_from_the_process_own_folder(
    launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "here.py").write_text("def train(trial):\n    'From here.'\n")
    monkeypatch.chdir(tmp_path)
    inherited = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, ["modules", inherited])))
    launcher, process = launch("here=here:train")
    assert [each.description for each in launcher.describe(process, 60).workloads] == ["From here."]


def test_what_is_built_in_is_the_default() -> None:
    launcher = LocalLauncher(threads=1, kill_grace_seconds=2)
    assert [each.name for each in launcher.registrations] == ["charlm-rnn", "digits-mlp"]


def test_code_that_is_trained_reads_no_request(launch) -> None:
    """What it starts inherits an empty input, so a request is not eaten by it."""
    _, process = launch("faulty=faulty:train", import_from=[FOLDER])
    process.send({"kind": "cohort", "cohort": cohort_of("input").to_json(), "checkpoints": None})
    process.send({"kind": "describe"})
    deadline = time.monotonic() + 60
    kinds = []
    while "catalogue" not in kinds:
        assert time.monotonic() < deadline
        if (message := process.receive(1)) is not None:
            kinds.append(message.kind)
    assert kinds.count("broken") == 1
