"""`cliptune tune`: one study per commit, waited for through cuts and limits, and configs judged by that very study."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from service.states import JobState
from tuner.evidence import Verdict
from tuner.spec import OFF_SETTING, ClipSetting

STUDY = ("--workload", "charlm-rnn", "--trials", "4", "--seeds", "2", "--steps", "9")
#: Long enough for a machine that is busy; nothing waits for it to pass.
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that says which commit it is."""
    for name in ("GITHUB_EVENT_NAME", "GITHUB_EVENT_PATH", "GITLAB_CI", "CI_PROJECT_PATH", "CI_COMMIT_SHA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GITHUB_REPOSITORY", "team/model")
    monkeypatch.setenv("GITHUB_SHA", "c" * 40)


def wait_until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.fixture
def worker(served: Any) -> Iterator[Callable[..., threading.Thread]]:
    """Ends the next study that is queued, as told, beside the command."""
    threads: list[threading.Thread] = []

    def start(act: Callable[[str], Any]) -> threading.Thread:
        def work() -> None:
            study = wait_until(lambda: queued(served))
            act(study["id"])

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def queued(served: Any) -> Any:
    items = served.http.get("/v1/studies").json()["items"]
    return next((each for each in items if each["state"] == "queued"), None)


def num_studies(served: Any) -> int:
    return len(served.http.get("/v1/studies").json()["items"])


# ---- what it answers ----


def test_configs_are_judged_by_this_very_study(
    served: Any, repository: Any, cliptune: Any, worker: Any
) -> None:
    repository.config("1.0", "conf/train.yaml")
    # A later study of the same workload: what `check` would take.
    worker(lambda study: served.succeed(study, setting=ClipSetting.parse("global_norm:3"), interval=(2, 4)))
    ended = cliptune("tune", "conf/train.yaml", *STUDY, "--report", "json=out.json")
    assert ended.code == 1, ended.err
    assert "max_grad_norm 1.0 is outside the recommended 2 to 4" in ended.out
    report = json.loads(Path("out.json").read_text())
    (study,) = served.http.get("/v1/studies").json()["items"]
    assert report["study"]["id"] == report["judgements"][0]["study_id"] == study["id"]
    assert study["spec"]["current"]["threshold"] == 1.0, "the study compares with what is in use"
    assert report["exit_code"] == 1 and report["study"]["ending"] == "succeeded"


def test_without_configs_every_format_tells_the_study(
    served: Any, repository: Any, cliptune: Any, worker: Any
) -> None:
    del repository
    worker(served.succeed)
    formats = {
        "json": "a.json",
        "junit": "a.xml",
        "markdown": "a.md",
        "github-output": "a.out",
        "dotenv": "a.env",
        "gitlab-annotations": "links.json",
        "gitlab-codequality": "quality.json",
        "metrics": "metrics.txt",
        "github": "a.github",
        "plain": "a.txt",
    }
    options = [each for name, path in formats.items() for each in ("--report", f"{name}={path}")]
    ended = cliptune("tune", *STUDY, "--format", "table", *options)
    assert ended.code == 0, ended.err
    (study,) = served.http.get("/v1/studies").json()["items"]
    url = f"/v1/studies/{study['id']}"
    assert ended.out.startswith(f"ok study {study['id'][:8]} of charlm-rnn: clipping helps\n")
    assert "global_norm:0.42 ends at a val_loss 0.054 better than off (95 % interval" in ended.out
    texts = {name: Path(path).read_text() for name, path in formats.items()}
    outputs = dict(line.split("=", 1) for line in texts["github-output"].splitlines())
    assert {name: outputs[name] for name in ("verdict", "recommended", "low", "high", "status")} == {
        "verdict": "clip",
        "recommended": "0.42",
        "low": "0.25",
        "high": "0.71",
        "status": "passed",
    }
    assert outputs["study-id"] == study["id"] and outputs["study-url"].endswith(url)
    assert f"CLIPTUNE_STUDY_ID={study['id']}\n" in texts["dotenv"]
    (case,) = ElementTree.fromstring(texts["junit"]).iter("testcase")
    assert (case.get("classname"), case.get("name"), case[0].tag) == ("study", "charlm-rnn", "system-out")
    assert "Use global" in texts["markdown"] and url in texts["markdown"] and "| why |" in texts["markdown"]
    assert json.loads(texts["gitlab-annotations"])["cliptune"][0]["external_link"]["url"].endswith(url)
    assert json.loads(texts["gitlab-codequality"]) == []
    assert 'cliptune_recommended_threshold{workload="charlm-rnn"} 0.42' in texts["metrics"]
    assert texts["github"].startswith("::notice title=clipping helps::study ")
    assert texts["plain"].startswith(
        f"ok: study {study['id'][:8]} of charlm-rnn: Use global_norm:0.42, and 0.25 "
    )
    told = json.loads(texts["json"])["study"]
    assert (told["recommended"], told["low"], told["high"]) == ("global_norm:0.42", 0.25, 0.71)


@pytest.mark.parametrize(
    ("changes", "words", "code"),
    [
        ({"verdict": Verdict.INCONCLUSIVE, "more_seeds": 4}, "About 4 further fresh seeds", "inconclusive"),
        ({"verdict": Verdict.INCONCLUSIVE, "reason": "Ask with more trials."}, "trials. [", "inconclusive"),
        (
            {"verdict": Verdict.DO_NOT_CLIP, "setting": OFF_SETTING, "interval": None},
            "Use off. ",
            "do_not_clip",
        ),
    ],
)
def test_other_answers_say_what_to_do(
    served: Any, repository: Any, cliptune: Any, worker: Any, changes: dict[str, Any], words: str, code: str
) -> None:
    del repository
    worker(lambda study: served.succeed(study, **changes))
    ended = cliptune("tune", *STUDY)
    assert ended.code == 0 and words in ended.out and f"[{code}] " in ended.out


# ---- once per commit ----


def test_same_commit_and_question_find_the_same_study(
    served: Any, repository: Any, cliptune: Any, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.config("0.42")
    worker(served.succeed)
    first = cliptune("tune", "train.yaml", *STUDY, "--write-lock")
    assert first.code == 0 and "submitted before" not in first.err
    # A default that is written out is the same question.
    again = cliptune("tune", "train.yaml", *STUDY, "--method", "global_norm")
    assert (again.code, again.out) == (0, first.out)
    assert "submitted before, succeeded" in again.err and num_studies(served) == 1
    assert cliptune("check", "--offline").code == 0, "the lock holds this study's answer"
    for change in (("--commit", "d" * 40), ("--repository", "team/fork"), ("--seeds", "3"), ("--again",)):
        worker(served.succeed)
        assert cliptune("tune", "train.yaml", *STUDY, *change).code == 0
    assert num_studies(served) == 5
    monkeypatch.setattr("service.api.routes.operations.installed_version", lambda: "99.0")
    worker(served.succeed)
    assert cliptune("tune", "train.yaml", *STUDY).code == 0
    assert num_studies(served) == 6, "a newer service may carry it out otherwise"


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_study_without_an_answer_is_told_and_submitted_anew_if_asked(
    served: Any, repository: Any, cliptune: Any, worker: Any, state: JobState
) -> None:
    repository.config("1.0")

    def end(study: str) -> None:
        if state is JobState.CANCELLED:
            assert served.http.post(f"/v1/studies/{study}/cancel").status_code == 202
        else:
            served.queue.finish(served.acquire(), state, error="Traceback\n::error::no such device")

    worker(end)
    ended = cliptune("tune", "train.yaml", *STUDY, "--report", "junit=a.xml", "--report", "github-output=o")
    assert ended.code == 5, ended.err
    assert f"[study_{state}]" in ended.out and "Give --again to submit it anew" in ended.out
    assert "\n::error::" not in ended.out + ended.err
    assert ElementTree.parse("a.xml").getroot().get("errors") == "1"
    assert f"status=study_{state}\n" in Path("o").read_text()
    watched = cliptune("watch", served.http.get("/v1/studies").json()["items"][0]["id"])
    assert watched.code == 5 and f"[study_{state}]" in watched.err and "\n::error::" not in watched.err
    replayed = cliptune("tune", "train.yaml", *STUDY)
    assert replayed.code == 5 and "It was submitted earlier." in replayed.out
    softened = cliptune("tune", "train.yaml", *STUDY, "--exit-zero")
    assert softened.code == 0 and softened.out.startswith("warning: study ")
    worker(served.succeed)
    anew = cliptune("tune", "train.yaml", *STUDY, "--again")
    assert anew.code == 1 and num_studies(served) == 2


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_outside_of_platforms_git_tells_the_commit(
    served: Any, repository: Any, cliptune: Any, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GITHUB_REPOSITORY", "GITHUB_SHA"):
        monkeypatch.delenv(name)
    path = repository.config("0.42")
    nowhere = cliptune("tune", "train.yaml", *STUDY)
    assert nowhere.code == 2 and "give --repository NAME" in nowhere.err
    assert nowhere.err.endswith("[origin_unknown]\n")
    (repository.root / ".git").rmdir()
    git(repository.root, "init", "--quiet")
    git(repository.root, "remote", "add", "origin", "https://ci:secret@git.example.org/team/model.git")
    unborn = cliptune("tune", "train.yaml", *STUDY)
    assert unborn.code == 2 and "give --commit SHA" in unborn.err
    git(repository.root, "add", ".")
    git(repository.root, "commit", "--quiet", "--message", "Train")
    worker(served.succeed)
    clean = cliptune("tune", "train.yaml", *STUDY)
    assert clean.code == 0 and "uncommitted" not in clean.err
    path.write_text(path.read_text() + "# more\n")
    dirty = cliptune("tune", "train.yaml", *STUDY)
    assert dirty.code == 0 and "warning: uncommitted changes are no part of what is asked" in dirty.err
    assert num_studies(served) == 1 and "secret" not in dirty.err


# ---- when it goes wrong ----


def test_time_limit_leaves_the_study_and_says_how_to_resume(
    served: Any, repository: Any, cliptune: Any
) -> None:
    del repository
    ended = cliptune("tune", *STUDY, "--timeout-minutes", "0.005", "--report", "json=out.json")
    assert ended.code == 4, ended.err
    study = queued(served)
    assert f"resume with: cliptune watch {study['id'][:8]}" in ended.out and "[timed_out]" in ended.out
    assert json.loads(Path("out.json").read_text())["study"]["ending"] == "timed_out"
    watched = cliptune("watch", study["id"], "--timeout-minutes", "0.005")
    assert watched.code == 4 and watched.err.endswith("[wait_timed_out]\n")
    served.succeed(study["id"])
    assert cliptune("watch", study["id"][:8]).code == 0
    assert cliptune("tune", *STUDY).code == 0, "the same command goes on, too"


def test_outage_fails_unless_it_is_to_warn(
    served: Any, repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del served, repository
    monkeypatch.setenv("CLIPTUNE_URL", "http://127.0.0.1:1")
    ended = cliptune("tune", *STUDY, "--report", "github-output=out.txt")
    assert ended.code == 3 and ended.out.startswith("failed: The service can't be reached")
    assert "status=unavailable\n" in Path("out.txt").read_text()
    softened = cliptune("tune", *STUDY, "--on-service-error", "warn")
    assert softened.code == 0 and softened.out.startswith("warning: ")


def test_refused_key_is_an_outage_of_its_own(
    served: Any, repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del repository
    monkeypatch.setenv("CLIPTUNE_API_KEY", served.new_key(scopes=("read",)))
    ended = cliptune("tune", *STUDY)
    assert ended.code == 3 and "The access key lacks a scope" in ended.out


#: Options and files that are none, with the words that say so.
BAD_INPUT: tuple[tuple[list[str], str], ...] = (
    (["--write-lock"], "name the configs"),
    (["--key", "a.b"], "name them"),
    (["--timeout-minutes", "0"], "must be > 0, got 0"),
    (["--timeout-minutes", "nan"], "must be > 0, got nan"),
    (["gone.yaml"], "[config_unreadable]"),
    (["empty"], "[no_clip_value]"),
    (["--spec", "gone.json"], "gone.json"),
    (["--trials", "0"], "must be a whole number between 2 and 1000, got 0"),
    (["--report", "sarif=x"], "[unknown_format]"),
    (["--current", "global_norm:x"], "must be a number"),
    (["--spec", "deep.json"], "--spec deep.json: "),
    (["train.yaml", "--tolerance", "-1"], "[invalid_check_rule]"),
    (["train.yaml", "--write-lock", "--lock", "gone/cliptune.lock.json"], "[lock_unreadable]"),
    (["--again", "--name", "nightly"], "the name 'nightly' belongs to one"),
)


def test_bad_input_is_refused_before_anything_is_submitted(
    served: Any, repository: Any, cliptune: Any
) -> None:
    (repository.root / "empty").mkdir()
    (repository.root / "deep.json").write_text("[" * 100_000)
    repository.config("1.0")
    for arguments, words in BAD_INPUT:
        ended = cliptune("tune", "--workload", "charlm-rnn", *arguments)
        assert ended.code == 2 and words in " ".join((ended.out + ended.err).split()), (arguments, ended)
        assert num_studies(served) == 0, arguments


def test_fields_of_the_file_that_are_none_are_the_services_to_refuse(
    served: Any, repository: Any, cliptune: Any
) -> None:
    # The last one begins as editors on Windows write it.
    for text in (
        '{"threads": 1}', '{"current": {"x": 1}}', '{"methods": 5}', '{"effect": NaN}', '\ufeff{"name": 5}',
    ):  # fmt: skip
        (repository.root / "study.json").write_text(text)
        ended = cliptune("tune", "--workload", "charlm-rnn", "--spec", "study.json")
        assert ended.code == 2 and ended.err.endswith(("[invalid_spec]\n", "[invalid_request]\n")), ended.err
    assert num_studies(served) == 0
    softened = cliptune("tune", "--workload", "gone", "--exit-zero")
    assert softened.code == 0 and softened.err.endswith("[unknown_workload]\n")
    assert softened.err.startswith("cliptune: nothing was tuned: ")


@pytest.mark.parametrize(
    ("value", "options", "current"),
    [
        ("0.3", [], "global_norm:0.3"),
        ("0", [], None),
        ("0.3", ["--method", "value"], None),
        ("0.3", ["--method", "value", "--method", "global_norm"], "global_norm:0.3"),
        ("0.3", ["--current", "global_norm:2"], "global_norm:2"),
    ],
)
def test_value_in_use_is_a_candidate_if_the_study_can_have_it(
    served: Any, repository: Any, cliptune: Any, value: str, options: list[str], current: str | None
) -> None:
    repository.config(value)
    ended = cliptune("tune", "train.yaml", *STUDY, *options, "--timeout-minutes", "0.001")
    assert ended.code == 4, ended.err + ended.out
    found = queued(served)["spec"]["current"]
    assert (found and str(ClipSetting(**found))) == current


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_the_study_and_writes_the_reports(
    served: Any, repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    del repository
    before = signal.getsignal(signal.SIGTERM)

    def interrupted(*arguments: Any, **options: Any) -> Iterator[None]:
        yield None
        signal.raise_signal(number)

    monkeypatch.setattr("service.client.follow.follow", interrupted)
    ended = cliptune("tune", *STUDY, "--report", "json=out.json")
    assert ended.code == 130
    assert f"resume with: cliptune watch {queued(served)['id'][:8]}" in ended.err
    assert json.loads(Path("out.json").read_text())["exit_code"] == 130
    assert signal.getsignal(signal.SIGTERM) is before
