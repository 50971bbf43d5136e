"""`cliptune drift`: a probe of the code as it is now against the one that a study kept, and what comes of it."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from service.ci.drift import MIN_SEEDS, NUM_SEEDS
from service.ci.lock import LOCK_FILE, Lock, Place, read_lock, write_lock
from service.ci.probed import Probed, probed
from service.cli.drift import drift
from service.db.clock import database_now
from service.db.models import StudyRow
from service.launchers.probing import Prober
from service.settings import Settings
from service.workloads import publish_workloads
from tuner.evidence import NormSketch, Reference, Verdict
from tuner.parameters import ParameterValue, resolve_parameters
from tuner.spec import ClipSetting, StudySpec

WORKLOAD = "digits-mlp"
NAMED = ("--workload", WORKLOAD)
SEEDS = 2


@pytest.fixture(scope="module")
def prober() -> Iterator[Prober]:
    """One training process for every test of this file: what starts it is not what they are about."""
    with Prober(Settings(workload_sources="built_in", training_threads=1)) as started:
        yield started


@pytest.fixture(scope="module")
def parameters(prober: Prober) -> dict[str, ParameterValue]:
    return resolve_parameters(prober.describe(WORKLOAD).parameters, {"hidden": 8})


@pytest.fixture(scope="module")
def reference(prober: Prober, parameters: dict[str, ParameterValue]) -> Reference:
    """What a study of two seeds measures of the code as it is."""
    return prober.measure(WORKLOAD, parameters, range(SEEDS))


@pytest.fixture
def kept(reference: Reference, parameters: dict[str, ParameterValue]) -> Probed:
    spec = StudySpec(workload=WORKLOAD, parameters=parameters, num_seeds=SEEDS).to_json()
    found = probed(asdict(reference), spec, device="cpu")
    assert found is not None
    return found


@pytest.fixture
def shared(prober: Prober, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command asks the process that runs already."""
    monkeypatch.setattr("service.launchers.probing.Prober", lambda settings: nullcontext(prober))


def scaled(then: Probed, factor: float) -> Probed:
    """The probe of code whose gradients were so many times as large."""
    assert then.max_abs is not None
    return replace(then, l2_norm=_times(then.l2_norm, factor), max_abs=_times(then.max_abs, factor))


def _times(sketch: NormSketch, factor: float) -> NormSketch:
    figures = asdict(sketch)
    grown = ("median", "q90", "q99", "max", "q01", "q10", "min")
    return NormSketch(**figures | {name: factor * figures[name] for name in grown})


def threshold(then: Probed) -> str:
    """One that half of the gradients pass."""
    return f"global_norm:{then.l2_norm.median:.3g}"


# ---- the command as it is ----


def test_unchanged_code_still_engages_and_the_command_loads_no_torch(repository: Any, kept: Probed) -> None:
    repository.keep("train.yaml", workload=WORKLOAD, setting=threshold(kept), probed=kept)
    program = (
        "import sys\nfrom service.cli.main import app\n"
        "app(['drift', '--offline', '--device-less'], standalone_mode=False)\n"
        "print('loaded', sorted({'torch', 'optuna', 'numpy', 'sqlalchemy', 'httpx2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=repository.root, env=os.environ
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first.startswith(
        f"ok: {WORKLOAD}: {threshold(kept)} still engages as it did: gradient norms before "
    )
    assert "The study's own probe was run again and gave the same norms within 1%." in first
    assert "Study 0f5a1b2c of digits-mlp, 6 seeds, 2026-01-02. [unchanged]" in first
    assert last == "loaded []"


# ---- without a config ----


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (0.25, "clips far more than it did"),
        (4.0, "no longer engages"),
    ],
)
@pytest.mark.usefixtures("shared")
def test_code_whose_norms_changed_fails(
    repository: Any, cliptune: Any, kept: Probed, factor: float, says: str
) -> None:
    then = scaled(kept, factor)
    setting = f"global_norm:{(then.l2_norm.q99 if factor < 1 else then.l2_norm.median):.3g}"
    repository.keep("train.yaml", workload=WORKLOAD, setting=setting, probed=then)
    ended = cliptune("drift", "--offline", "--format", "json")
    document = json.loads(ended.out)
    (finding,) = document["findings"]
    assert (ended.code, document["exit_code"], finding["severity"]) == (1, 1, "failure")
    assert says in finding["sentence"] and finding["has_drifted"] and not finding["is_repeat"]
    median = finding["ratios"]["median"]
    assert median["ratio"] == pytest.approx(1 / factor, rel=0.3)
    assert median["low"] < median["ratio"] < median["high"]
    assert (finding["num_seeds"], finding["num_batches"]) == (
        {"then": SEEDS, "now": NUM_SEEDS},
        {"then": 100, "now": 50 * NUM_SEEDS},
    )


@pytest.mark.usefixtures("shared")
def test_rules_of_the_caller_soften_a_drift(repository: Any, cliptune: Any, kept: Probed) -> None:
    repository.keep(
        "train.yaml", workload=WORKLOAD, setting="none", verdict=Verdict.NO_DIFFERENCE, probed=scaled(kept, 4)
    )
    for options, code, word in (
        ((), 1, "failed: "),
        (("--fail-on", "regression"), 0, "warning: "),
        (("--exit-zero",), 0, "warning: "),
    ):
        ended = cliptune("drift", "--offline", *options)
        assert (ended.code, ended.out[: len(word)]) == (code, word), options
    assert "clipping made no difference, and the gradient norms are smaller than they were" in ended.out
    assert "[drift]" in ended.out


@pytest.mark.usefixtures("shared")
def test_other_model_than_the_study_tuned_is_the_first_sentence(
    repository: Any, cliptune: Any, kept: Probed
) -> None:
    repository.keep("train.yaml", workload=WORKLOAD, setting="none", verdict=Verdict.DO_NOT_CLIP, probed=kept)
    report = repository.root / "out" / "drift.json"
    ended = cliptune("drift", "--offline", *NAMED, "--param", "hidden=16", "--report", f"json={report}")
    line = ended.out.partition(": digits-mlp: ")[2]
    assert line.startswith("This is not the training that the study tuned: parameters ")
    assert "off was recommended, and " in line
    assert "It was probed with hidden=16 where the study had 8." in line
    (finding,) = json.loads(report.read_text())["findings"]
    assert finding["is_other_training"] and finding["severity"] != "ok"


@pytest.mark.usefixtures("shared")
def test_parameters_that_are_gone_and_another_device_are_told(
    repository: Any, cliptune: Any, kept: Probed
) -> None:
    then = replace(kept, parameters={**kept.parameters, "width": 3}, device="cuda")
    repository.keep("train.yaml", workload=WORKLOAD, setting=threshold(kept), probed=then)
    ended = cliptune("drift", "--offline")
    assert ended.code == 0
    assert "The workload no longer has width." in ended.out
    assert "This probe ran on cpu, the study's on cuda." in ended.out


# ---- with configs ----


@pytest.mark.usefixtures("shared")
def test_configs_are_judged_and_each_training_is_probed_once(
    repository: Any, cliptune: Any, kept: Probed
) -> None:
    then = scaled(kept, 4)
    good, bad = then.l2_norm.median, 10 * then.l2_norm.median
    repository.keep(
        *("a.yaml", "b.yaml"),
        workload=WORKLOAD,
        setting=f"global_norm:{good!r}",
        interval=(good / 1.1, good * 1.1),
        probed=then,
    )
    paths = [repository.config(f"{good!r}", "a.yaml"), repository.config(f"{bad!r}", "b.yaml")]
    ended = cliptune("drift", *map(str, paths), "--offline", "--format", "json")
    assert ended.code == 1
    judgements = {each["file"]: each for each in json.loads(ended.out)["judgements"]}
    assert [judgements[name]["verdict"] for name in ("a.yaml", "b.yaml")] == ["drift", "drift"]
    assert "no longer engages" in judgements["a.yaml"]["sentence"]
    assert "At the config's own" not in judgements["a.yaml"]["sentence"]
    assert "At the config's own global_norm:" in judgements["b.yaml"]["sentence"]
    softened = cliptune("drift", str(paths[0]), "--offline", "--fail-on", "never")
    assert softened.code == 0 and softened.out.startswith("warning: a.yaml:3: ")


@pytest.mark.usefixtures("shared")
def test_config_that_is_right_for_another_training_is_a_warning(
    repository: Any, cliptune: Any, kept: Probed
) -> None:
    assert kept.features is not None
    then = replace(kept, features=replace(kept.features, optimizer="adam"))
    repository.keep("a.yaml", workload=WORKLOAD, setting="global_norm:0.42", probed=then)
    ended = cliptune("drift", str(repository.config("0.42", "a.yaml")), "--offline")
    assert ended.code == 0 and ended.out.startswith("warning: a.yaml:3: ")
    assert (
        "fits the code as it is now: This is not the training that the study tuned: optimizer adam"
        in ended.out
    )


# ---- by the service ----


@pytest.fixture
def study(
    served: Any, prober: Prober, reference: Reference, parameters: dict[str, ParameterValue]
) -> dict[str, Any]:
    """A finished study whose probe is the code's own."""
    with served.database.write() as session:
        publish_workloads(session, [prober.describe(WORKLOAD)], database_now(session))
    created = served.study(workload=WORKLOAD, parameters=parameters, num_seeds=SEEDS)
    with served.database.write() as session:
        session.get_one(StudyRow, created["id"]).reference = asdict(reference)
    setting = ClipSetting(method="global_norm", threshold=round(reference.norms.median, 3))
    served.succeed(created["id"], setting=setting, best=setting, interval=(0.01, 10.0))
    return dict(created)


@pytest.mark.usefixtures("shared", "study")
def test_service_gives_the_norms_and_a_lock_keeps_them(repository: Any, cliptune: Any) -> None:
    path = repository.config("0.42")
    by_service = cliptune("drift", str(path), *NAMED)
    assert by_service.code == 0, by_service
    assert by_service.out.startswith(
        "ok: train.yaml:3: max_grad_norm 0.42 is within the recommended 0.01 to 10"
    )
    assert "still engages as it did" in by_service.out
    assert cliptune("check", str(path), *NAMED, "--write-lock").code == 0
    (entry,) = read_lock(repository.root / LOCK_FILE).entries.values()
    assert entry.probed is not None and entry.probed.device == "cpu"
    offline = cliptune("drift", str(path), "--offline")
    assert offline.out == by_service.out
    # Without a config: what the lock names, by the service's newest answer.
    assert "still engages as it did" in cliptune("drift").out


@pytest.mark.usefixtures("shared", "study")
def test_parameters_that_no_study_had_are_those_of_the_code(repository: Any, cliptune: Any) -> None:
    known = cliptune("drift", *NAMED, "--param", "hidden=8")
    assert "This is not the training" not in known.out and known.out.startswith("ok: ")
    for more in ((), (str(repository.config("0.42")),)):
        other = cliptune("drift", *more, *NAMED, "--param", "hidden=16")
        assert "It was probed with hidden=16 where the study had 8." in other.out


@pytest.mark.usefixtures("served")
def test_workload_without_a_study_is_a_warning(repository: Any, cliptune: Any) -> None:
    for more in ((), (str(repository.config("1.0")),)):
        ended = cliptune("drift", *more, *NAMED)
        assert ended.code == 0 and ended.out.startswith("warning: ") and "[no_recommendation]" in ended.out
    found = json.loads(cliptune("drift", *NAMED, "--format", "json").out)["findings"]
    assert [(each["change"], each["has_drifted"]) for each in found] == [(None, False)]


def test_study_whose_norms_were_not_told_has_nothing_to_compare_with(served: Any, cliptune: Any) -> None:
    served.succeed(served.study()["id"])
    ended = cliptune("drift", "--workload", "charlm-rnn")
    assert ended.code == 2 and ended.err.endswith("[norms_not_kept]\n")


@pytest.mark.parametrize("with_file", [False, True])
def test_service_that_is_down_is_a_warning_unless_it_shall_count(
    repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch, with_file: bool
) -> None:
    monkeypatch.setattr("service.client.connection._RETRY_WAITS", ())
    monkeypatch.setenv("CLIPTUNE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("CLIPTUNE_API_KEY", "cliptune_live_x_y_z")
    options = (*([str(repository.config("1.0"))] if with_file else []), *NAMED)
    for more, code, word in (((), 0, "warning: "), (("--on-service-error", "fail"), 3, "failed: ")):
        ended = cliptune("drift", *options, *more)
        assert (ended.code, ended.out[: len(word)]) == (code, word)
        assert "can't be reached" in ended.out
    told = json.loads(cliptune("drift", *options, "--format", "json").out)
    assert told["outage"]["code"] == "service_unreachable"


# ---- what is refused ----


def test_lock_of_an_earlier_version_says_how_to_get_the_norms(repository: Any, cliptune: Any) -> None:
    repository.keep("train.yaml")
    for more in ((), (str(repository.config("1.0")),)):
        ended = cliptune("drift", *more, "--offline")
        assert ended.code == 2 and ended.out == ""
        assert "study 0f5a1b2c of charlm-rnn has no gradient norms to compare with" in ended.err
        assert "write it anew: cliptune check --write-lock" in ended.err
        assert ended.err.endswith("[norms_not_kept]\n")
    softened = cliptune("drift", "--offline", "--exit-zero")
    assert softened.code == 0 and softened.err.startswith("cliptune: nothing was compared: study 0f5a1b2c")


@pytest.mark.usefixtures("shared")
def test_one_study_that_can_not_be_looked_at_hides_no_other(
    repository: Any, cliptune: Any, kept: Probed
) -> None:
    then = scaled(kept, 4)
    studies = {
        "a.yaml": repository.keep(recommendation_id="one"),
        "b.yaml": repository.keep(recommendation_id="two", workload="gone", probed=then),
        "c.yaml": repository.keep(recommendation_id="three", workload=WORKLOAD, probed=then),
    }
    lock = Lock({Place(name, "max_grad_norm"): each for name, each in studies.items()})
    write_lock(repository.root / LOCK_FILE, lock)
    ended = cliptune("drift", "--offline")
    failed, *others = ended.out.splitlines()
    assert ended.code == 1 and failed.startswith(f"failed: {WORKLOAD}: ")
    assert [each.rpartition(" ")[2] for each in sorted(others)] == ["[norms_not_kept]", "[workload_not_here]"]
    assert all(each.startswith("warning: ") and ": nothing was compared: " in each for each in others)
    found = json.loads(cliptune("drift", "--offline", "--format", "json").out)["findings"]
    assert sorted(each.get("code", "") for each in found) == ["", "norms_not_kept", "workload_not_here"]
    paths = [str(repository.config("0.42", name)) for name in studies]
    report = cliptune("drift", *paths, "--offline", "--format", "json")
    severities = [each["severity"] for each in json.loads(report.out)["judgements"]]
    assert (report.code, sorted(severities)) == (1, ["failure", "warning", "warning"])
    assert (
        "fits the code as it is now is open: study 0f5a1b2c of charlm-rnn has no gradient norms" in report.out
    )


@pytest.mark.usefixtures("shared")
def test_workload_that_is_not_registered_here_says_how_to(
    repository: Any, cliptune: Any, kept: Probed
) -> None:
    repository.keep("train.yaml", workload="my-model", probed=kept)
    ended = cliptune("drift", "--offline")
    assert ended.code == 2
    assert "register the training's code as CLIPTUNE_WORKLOADS=my-model=MODULE:ATTRIBUTE" in ended.err
    assert ended.err.endswith("[workload_not_here]\n")


@pytest.mark.usefixtures("shared")
def test_parameter_out_of_its_bounds_is_named(repository: Any, cliptune: Any, kept: Probed) -> None:
    repository.keep("train.yaml", workload=WORKLOAD, probed=kept)
    ended = cliptune("drift", "--offline", *NAMED, "--param", "hidden=0")
    assert ended.code == 2
    assert "parameters.hidden must be >= 1, got 0" in ended.err


def test_nothing_tells_what_to_probe(repository: Any, cliptune: Any) -> None:
    ended = cliptune("drift")
    assert ended.code == 2 and "give --workload NAME" in ended.err
    assert ended.err.endswith("[workload_not_named]\n")
    repository.keep("train.yaml")
    other = cliptune("drift", "--offline", *NAMED)
    assert other.code == 0
    assert "cliptune.lock.json has no recommendation for digits-mlp" in other.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--format", "junit"), "format junit is about config files: name some, or use plain or json"),
        (("--report", "markdown=out.md"), "format markdown is about config files"),
        (("--format", "sarif"), "[unknown_format]"),
        (("--param", "hidden=1"), "--param belongs to a workload: give --workload too"),
        (("--seeds", str(MIN_SEEDS - 1)), "'--seeds'"),
        (("--offline",), "[lock_not_found]"),
    ],
)
@pytest.mark.usefixtures("repository")
def test_option_that_can_not_be_used_is_named(cliptune: Any, options: tuple[str, ...], says: str) -> None:
    ended = cliptune("drift", *options)
    assert ended.code == 2 and says in ended.err and ended.out == ""


@pytest.mark.usefixtures("shared")
def test_report_that_can_not_be_written_is_named(
    repository: Any, cliptune: Any, kept: Probed, tmp_path: Path
) -> None:
    repository.keep("train.yaml", workload=WORKLOAD, setting=threshold(kept), probed=kept)
    ended = cliptune("drift", "--offline", "--report", f"json={tmp_path}")
    assert ended.code == 2 and "can't be written" in ended.err


def test_number_of_seeds_is_that_of_the_rule() -> None:
    assert inspect.signature(drift).parameters["seeds"].default == NUM_SEEDS
