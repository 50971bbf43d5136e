"""`cliptune check`: what is compared with what, what is printed and written, and what the process exits with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from service.ci.lock import LOCK_FILE, read_lock
from tuner.evidence import Verdict

WORKLOAD = ("--workload", "charlm-rnn")


def document(ended: Any) -> dict[str, Any]:
    return dict(json.loads(ended.out))


@pytest.fixture
def study(served: Any) -> Any:
    """A finished study of charlm-rnn: 0.42, as good from 0.25 to 0.71."""
    created = served.study()
    served.succeed(created["id"])
    return created


# ---- against the service ----


def test_bad_value_fails_with_its_evidence(study: Any, repository: Any, cliptune: Any) -> None:
    repository.config("1.0", "conf/train.yaml")
    ended = cliptune("check", *WORKLOAD)
    assert ended.code == 1
    first, last = ended.out.splitlines()
    assert first.startswith(
        "failed: conf/train.yaml:3: max_grad_norm 1.0 is outside the recommended 0.25 to 0.71, in units of the "
    )
    assert "use 0.42" in first and f"Study {study['id'][:8]} of charlm-rnn" in first
    assert f"/v1/studies/{study['id']}" in first
    assert last == "1 clip value checked: 1 failed."


@pytest.mark.parametrize(("value", "verdict"), [("0.42", "inside"), ("0.71", "inside"), ("0", "regression")])
@pytest.mark.usefixtures("study")
def test_verdict_and_exit_code_agree(repository: Any, cliptune: Any, value: str, verdict: str) -> None:
    path = repository.config(value)
    ended = cliptune("check", str(path), *WORKLOAD, "--format", "json")
    assert ended.code == (0 if verdict == "inside" else 1)
    assert [each["verdict"] for each in document(ended)["judgements"]] == [verdict]


@pytest.mark.usefixtures("study")
def test_rules_of_the_caller_decide_what_fails(repository: Any, cliptune: Any) -> None:
    repository.config("1.0")
    for options, code, word in (
        (["--fail-on", "never"], 0, "warning: "),
        (["--fail-on", "regression"], 0, "warning: "),
        (["--tolerance", "0.5"], 0, "ok: "),
        (["--tolerance", "0.1"], 1, "failed: "),
        (["--exit-zero"], 0, "warning: "),
    ):
        ended = cliptune("check", *WORKLOAD, *options)
        assert (ended.code, ended.out[: len(word)]) == (code, word), options


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--tolerance", "-1"], "invalid_check_rule"),
        (["--tolerance", "nan"], "invalid_check_rule"),
        (["--stale-after", "-1"], "invalid_check_rule"),
        (["--format", "sarif"], "unknown_format"),
        (["--report", "sarif=out"], "unknown_format"),
    ],
)
@pytest.mark.usefixtures("study")
def test_rule_out_of_bounds_is_refused(repository: Any, cliptune: Any, options: list[str], code: str) -> None:
    repository.config("1.0")
    ended = cliptune("check", *WORKLOAD, *options)
    assert ended.code == 2
    assert ended.err.endswith(f"[{code}]\n") and ended.out == ""


@pytest.mark.usefixtures("served")
def test_workload_without_a_study_is_a_warning(repository: Any, cliptune: Any) -> None:
    repository.config("1.0")
    ended = cliptune("check", *WORKLOAD)
    assert ended.code == 0
    assert ended.out.startswith("warning: train.yaml:3: max_grad_norm 1.0 was not judged: ")
    assert "[no_recommendation]" in ended.out


def test_parameters_choose_among_the_studies_of_a_workload(
    served: Any, repository: Any, cliptune: Any
) -> None:
    for hidden in (32, 128):
        served.succeed(served.study(parameters={"hidden": hidden})["id"])
    repository.config("0.42")
    for hidden, verdict in ((32, "inside"), (128, "inside"), (64, "no_recommendation")):
        ended = cliptune("check", *WORKLOAD, "--param", f"hidden={hidden}", "--format", "json")
        assert [each["verdict"] for each in document(ended)["judgements"]] == [verdict]
    assert "no finished study of charlm-rnn has hidden=64" in document(ended)["judgements"][0]["sentence"]
    fingerprint = served.http.get("/v1/studies").json()["items"][0]["fingerprint"]
    for hidden, code in ((128, "inside"), (32, "no_recommendation")):
        both = ("--param", f"hidden={hidden}", "--fingerprint", fingerprint)
        assert f"[{code}]" in cliptune("check", *WORKLOAD, *both).out


def test_fingerprint_of_something_else_is_no_match(study: Any, repository: Any, cliptune: Any) -> None:
    repository.config("1.0")
    known = cliptune("check", "--fingerprint", study["fingerprint"])
    other = cliptune("check", *WORKLOAD, "--fingerprint", "0" * 16)
    assert known.code == 1 and "[outside]" in known.out
    assert other.code == 0 and "was not judged" in other.out and "to start from" in other.out


@pytest.mark.usefixtures("study")
def test_service_is_asked_once_for_many_files(repository: Any, cliptune: Any) -> None:
    for number in range(5):
        repository.config("1.0" if number else "0.3", f"conf/{number}.yaml")
    ended = cliptune("check", "conf", *WORKLOAD)
    assert ended.code == 1
    assert ended.out.splitlines()[-1] == "5 clip values checked: 4 failed, 1 ok."


# ---- which files ----


@pytest.mark.usefixtures("study")
def test_worst_comes_first_and_no_file_twice(repository: Any, cliptune: Any) -> None:
    repository.config("0.5", "a.yaml")
    bad = repository.config("3.0", "b/train.yaml")
    ended = cliptune("check", "b/train.yaml", ".", str(bad), "a.yaml", *WORKLOAD, "--format", "json")
    found = [(each["file"], each["verdict"]) for each in document(ended)["judgements"]]
    assert found == [("b/train.yaml", "outside"), ("a.yaml", "inside")]


@pytest.mark.usefixtures("study")
def test_files_are_named_from_the_root(
    repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.config("1.0", "conf/train.yaml")
    monkeypatch.chdir(repository.root / "conf")
    assert cliptune("check", "train.yaml", *WORKLOAD).out.startswith("failed: conf/train.yaml:3: ")


@pytest.mark.usefixtures("study")
def test_folder_is_swept_and_a_named_file_is_told_about(repository: Any, cliptune: Any) -> None:
    repository.config("0.42")
    (repository.root / "values.yaml").write_text("chart: 1\nmax_grad_norm: 7\n")
    (repository.root / "ds.json").write_text('{"zero_optimization": {}, "gradient_clipping": "auto"}')
    swept = cliptune("check", *WORKLOAD)
    assert swept.code == 0
    assert swept.err == (
        "cliptune: 2 files name a clip key and are no training config that is known: name one to see why\n"
    )
    named = cliptune("check", "values.yaml", "ds.json", "gone.yaml", *WORKLOAD)
    assert named.code == 2
    codes = [line.rpartition("[")[2].rstrip("]") for line in named.out.splitlines()[:-1]]
    assert codes == ["auto_value", "config_unreadable", "ambiguous_framework"]


@pytest.mark.usefixtures("study")
def test_refused_value_in_a_swept_file_is_told(repository: Any, cliptune: Any) -> None:
    repository.config("${oc.env:CLIP}")
    ended = cliptune("check", *WORKLOAD)
    assert ended.code == 2 and "train.yaml:3" in ended.out and "[interpolated_value]" in ended.out


@pytest.mark.usefixtures("study")
def test_hints_find_the_value_of_a_file_that_is_nobodys(repository: Any, cliptune: Any) -> None:
    (repository.root / "own.yaml").write_text("base: &clip 1.0\noptim: {clip: *clip}\nmax_grad_norm: 0.4\n")
    key = cliptune("check", "own.yaml", *WORKLOAD, "--key", "optim.clip", "--framework", "transformers")
    assert key.code == 2 and "[aliased_value]" in key.out
    followed = cliptune(
        *("check", "own.yaml", *WORKLOAD, "--key", "optim.clip", "--framework", "transformers", "--follow")
    )
    assert followed.code == 1 and "own.yaml:1: optim.clip" in followed.out
    framework = cliptune("check", "own.yaml", *WORKLOAD, "--framework", "transformers")
    assert framework.code == 0 and "within the recommended" in framework.out


@pytest.mark.usefixtures("study")
def test_value_that_is_no_setting_says_why(repository: Any, cliptune: Any) -> None:
    (repository.root / "own.yaml").write_text("clip: 1.0\n")
    unknown = cliptune("check", "own.yaml", *WORKLOAD, "--key", "clip")
    assert unknown.code == 0
    assert "was not judged: what clip limits is not known: name the framework" in unknown.out
    (repository.root / "keras.json").write_text(
        '{"class_name": "Adam", "config": {"clipnorm": 1.0, "learning_rate": 0.1}}'
    )
    keras = cliptune("check", "keras.json", *WORKLOAD, "--framework", "keras")
    assert "it limits each tensor on its own to one norm" in keras.out
    (repository.root / "sb3.yaml").write_text("ppo: {n_steps: 8, policy: MlpPolicy, max_grad_norm: 0}\n")
    zero = cliptune("check", "sb3.yaml", *WORKLOAD, "--framework", "sb3")
    assert "0 is no threshold: it has to be > 0" in zero.out
    repository.config(".nan")
    nan = cliptune("check", "train.yaml", *WORKLOAD)
    assert nan.code in (0, 2) and "failed" not in nan.out


def test_off_is_spelled_as_the_file_would_have_it(served: Any, repository: Any, cliptune: Any) -> None:
    from tuner.spec import OFF_SETTING

    served.succeed(served.study()["id"], verdict=Verdict.DO_NOT_CLIP, setting=OFF_SETTING, interval=None)
    repository.config("1.0", "hf.yaml")
    (repository.root / "fit.yaml").write_text("seed_everything: 1\ntrainer: {gradient_clip_val: 1}\n")
    (repository.root / "train.py").write_text(
        "out_dir = 'out'\nblock_size = 8\nn_layer = 2\ngrad_clip = 1.0\n"
    )
    ended = cliptune("check", *WORKLOAD, "--format", "json")
    assert ended.code == 1
    found = {each["file"]: each["recommended_spelled"] for each in document(ended)["judgements"]}
    assert found == {"hf.yaml": "0.0", "fit.yaml": "null", "train.py": "0.0"}


# ---- what is printed and written ----


@pytest.mark.usefixtures("study")
def test_runner_of_github_gets_annotations(
    repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.config("1.0")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    ended = cliptune("check", *WORKLOAD)
    assert ended.code == 1 and "::error file=train.yaml,line=3" in ended.out
    assert cliptune("check", *WORKLOAD, "--format", "plain").out.startswith("failed: ")


@pytest.mark.usefixtures("study")
def test_several_reports_are_written_at_once(repository: Any, cliptune: Any) -> None:
    repository.config("1.0")
    (repository.root / "out.txt").write_text("earlier=1\n")
    (repository.root / "old.json").write_text("something older and longer than nothing")
    ended = cliptune(
        *("check", *WORKLOAD, "--report", "junit=out/deep/junit.xml", "--report", "json=old.json"),
        *("--report", "github-output=out.txt", "--report", "markdown=out/report.md"),
    )
    assert ended.code == 1
    assert ElementTree.parse(repository.root / "out/deep/junit.xml").getroot().get("failures") == "1"
    assert json.loads((repository.root / "old.json").read_text())["exit_code"] == 1
    lines = (repository.root / "out.txt").read_text().splitlines()
    assert lines[0] == "earlier=1" and "verdict=outside" in lines, "what another command wrote stays"
    assert "Gradient clipping: 1 clip value" in (repository.root / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("junit", "must be FORMAT=PATH"),
        ("junit=", "must be FORMAT=PATH"),
        ("junit=.git", "can't be written"),
        ("junit=train.yaml/x", "can't be written"),
    ],
)
@pytest.mark.usefixtures("study")
def test_report_that_can_not_be_written_is_a_usage_error(
    repository: Any, cliptune: Any, option: str, words: str
) -> None:
    repository.config("1.0")
    ended = cliptune("check", *WORKLOAD, "--report", option)
    assert ended.code == 2 and words in " ".join(ended.err.split())


def test_stream_of_another_encoding_gets_escapes(repository: Any) -> None:
    repository.keep("\u00e4.yaml")
    repository.config("1.0", "\u00e4.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "service.cli.main", "check", "--offline"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "GITHUB_ACTIONS": ""},
        cwd=repository.root,
        capture_output=True,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith(b"failed: \\xe4.yaml:3: ")


# ---- the lock ----


@pytest.mark.usefixtures("study")
def test_lock_gives_the_same_report_offline(
    repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, name in (("1.0", "a.yaml"), ("0.3", "b/c.yaml"), ("0", "d.yaml")):
        repository.config(value, name)
    online = cliptune("check", *WORKLOAD, "--write-lock", "--format", "json")
    assert online.err == f"cliptune: {LOCK_FILE} was written: 3 of 3 values\n"
    again = cliptune("check", *WORKLOAD, "--write-lock")
    assert again.err == f"cliptune: {LOCK_FILE} is up to date: 3 of 3 values\n"
    monkeypatch.delenv("CLIPTUNE_API_KEY")
    monkeypatch.setenv("CLIPTUNE_URL", "http://127.0.0.1:1")
    offline = cliptune("check", "--offline", "--format", "json")
    assert (offline.code, offline.out) == (1, online.out)


@pytest.mark.usefixtures("study")
def test_lock_says_what_a_file_trains(repository: Any, cliptune: Any) -> None:
    repository.config("1.0", "a.yaml")
    cliptune("check", *WORKLOAD, "--write-lock")
    repository.config("1.0", "b.yaml")
    ended = cliptune("check", "--format", "json")
    found = {each["file"]: each["verdict"] for each in document(ended)["judgements"]}
    assert found == {"a.yaml": "outside", "b.yaml": "no_recommendation"}
    assert "which workload it trains is not known: give --workload" in ended.out


@pytest.mark.usefixtures("served")
def test_nothing_to_keep_writes_no_lock(repository: Any, cliptune: Any) -> None:
    repository.config("1.0")
    ended = cliptune("check", *WORKLOAD, "--write-lock")
    assert ended.err == f"cliptune: nothing was recommended, and {LOCK_FILE} stays as it is\n"
    assert not (repository.root / LOCK_FILE).exists()


@pytest.mark.usefixtures("study")
def test_lock_forgets_files_that_are_gone(repository: Any, cliptune: Any) -> None:
    repository.config("1.0", "a.yaml").unlink()
    repository.keep("a.yaml", "b.yaml")
    repository.config("1.0", "b.yaml")
    repository.config("1.0", "c.yaml")
    cliptune("check", "c.yaml", *WORKLOAD, "--write-lock")
    assert [place.file for place in read_lock(repository.root / LOCK_FILE).entries] == ["b.yaml", "c.yaml"]


def test_stale_recommendation_is_a_warning(repository: Any, cliptune: Any) -> None:
    repository.keep("train.yaml")
    repository.config("0.42")
    assert cliptune("check", "--offline").out.startswith("ok: ")
    ended = cliptune("check", "--offline", "--stale-after", "30")
    assert ended.code == 0
    assert ended.out.startswith("warning: ") and "more than the 30 allowed: run the study again" in ended.out


def test_workload_offline_takes_what_is_kept_for_another_file(repository: Any, cliptune: Any) -> None:
    repository.keep("a.yaml")
    repository.config("1.0", "b.yaml")
    assert "[no_recommendation]" in cliptune("check", "--offline").out
    assert "[outside]" in cliptune("check", "--offline", *WORKLOAD).out
    other = cliptune("check", "--offline", "--workload", "digits-mlp")
    assert "has no recommendation for digits-mlp" in other.out


def test_key_that_is_kept_is_looked_for_again(repository: Any, cliptune: Any) -> None:
    (repository.root / "own.yaml").write_text("optim: {clip_grad_norm: 1.0}\n")
    alone = cliptune("check", "own.yaml", *WORKLOAD)
    assert alone.code == 2 and "[ambiguous_framework]" in alone.out
    repository.keep("own.yaml", key="optim.clip_grad_norm")
    kept = cliptune("check", "own.yaml", "--offline")
    assert kept.code == 1 and "optim.clip_grad_norm 1.0 is outside" in kept.out
    swept = cliptune("check", "--offline")
    assert swept.out == kept.out


def test_only_locked_files_are_read(repository: Any, cliptune: Any) -> None:
    repository.keep("a.yaml")
    repository.config("0.42", "a.yaml")
    (repository.root / "broken.yaml").write_text("max_grad_norm: [")
    assert cliptune("check", "a.yaml", "broken.yaml", "--offline").code == 2
    ended = cliptune("check", "a.yaml", "broken.yaml", "--offline", "--only-locked")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "1 clip value checked: 1 ok.")
    (repository.root / "a.yaml").write_text("max_grad_norm: [")
    assert cliptune("check", "a.yaml", "--offline", "--only-locked").code == 2


def test_lock_may_lie_elsewhere(repository: Any, cliptune: Any) -> None:
    repository.keep("../train.yaml")
    repository.config("1.0")
    (repository.root / "ci").mkdir()
    (repository.root / LOCK_FILE).rename(repository.root / "ci" / "clip.json")
    ended = cliptune("check", "--offline", "--lock", "ci/clip.json")
    assert ended.code == 1 and "failed: train.yaml:3" in ended.out


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "lock_not_found"),
        ("<<<<<<< ours\n", "lock_corrupt"),
        ('{"schema_version": 99}', "lock_version"),
    ],
)
def test_lock_that_is_no_good_is_a_config_error(
    repository: Any, cliptune: Any, content: str | None, code: str
) -> None:
    repository.config("1.0")
    if content is not None:
        (repository.root / LOCK_FILE).write_text(content)
    ended = cliptune("check", "--offline")
    assert ended.code == 2 and ended.err.endswith(f"[{code}]\n")
    softened = cliptune("check", "--offline", "--exit-zero")
    assert softened.code == 0 and softened.err.startswith("cliptune: nothing was checked: ")


# ---- without a service, and with options that contradict ----


def test_workload_must_be_known(repository: Any, cliptune: Any) -> None:
    repository.config("1.0")
    ended = cliptune("check")
    assert ended.code == 2
    assert ended.err.startswith(
        "cliptune: which workload train.yaml trains is not known: give --workload NAME"
    )
    assert ended.err.endswith("[workload_not_named]\n")


def test_nothing_to_check_asks_nobody(repository: Any, cliptune: Any) -> None:
    assert repository.root.exists()
    ended = cliptune("check")
    assert (ended.code, ended.out, ended.err) == (0, "No clip value was checked.\n", "")


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"CLIPTUNE_URL": "http://127.0.0.1:1", "CLIPTUNE_API_KEY": "x"}, "service_unreachable"),
        ({"CLIPTUNE_URL": "http://127.0.0.1:1"}, "key_missing"),
        ({"CLIPTUNE_API_KEY": "\u00e9"}, "key_malformed"),
    ],
)
def test_outage_is_a_warning_unless_it_should_fail(
    repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], code: str
) -> None:
    repository.config("1.0")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ended = cliptune("check", *WORKLOAD)
    assert ended.code == 0
    assert ended.out.startswith("warning: ") and f"[{code}]" in ended.out
    assert cliptune("check", *WORKLOAD, "--on-service-error", "fail").code == 3
    assert cliptune("check", *WORKLOAD, "--on-service-error", "fail", "--exit-zero").code == 0


@pytest.mark.parametrize("address", ["clips.example.org", "ftp://clips.example.org", "secret-key"])
def test_address_that_is_none_is_a_mistake_and_not_shown(
    repository: Any, cliptune: Any, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    repository.config("1.0")
    monkeypatch.setenv("CLIPTUNE_URL", address)
    ended = cliptune("check", *WORKLOAD)
    assert ended.code == 2 and ended.err.endswith("[invalid_settings]\n")
    assert (
        "CLIPTUNE_URL is no address of a service: write all of it" in ended.err and address not in ended.err
    )
    assert "--url is no address" in cliptune("check", *WORKLOAD, "--url", address).err


@pytest.mark.usefixtures("study")
def test_question_that_the_service_refuses_is_no_outage(repository: Any, cliptune: Any) -> None:
    repository.config("1.0")
    ended = cliptune("check", "--fingerprint", "no fingerprint")
    assert ended.code == 2 and ended.err.endswith("[invalid_request]\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--offline", "--write-lock"], "leave out --offline"),
        (["--key", "a.b"], "name the files"),
        (["--param", "hidden=1"], "give --workload too"),
        (["--offline", *WORKLOAD, "--param", "hidden=1"], "give --fingerprint instead"),
        ([*WORKLOAD, "--fail-on", "sometimes"], "--fail-on"),
    ],
)
def test_options_that_contradict_are_refused(
    repository: Any, cliptune: Any, options: list[str], words: str
) -> None:
    repository.config("1.0")
    ended = cliptune("check", *options)
    assert ended.code == 2 and words in " ".join(ended.err.split())


def test_offline_check_loads_nothing_heavy(repository: Any) -> None:
    repository.keep("train.yaml")
    repository.config("0.42")
    program = (
        "import sys; sys.argv = ['cliptune', 'check', '--offline']\n"
        "from service.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=repository.root,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {
        "torch",
        "optuna",
        "numpy",
        "scipy",
        "sqlalchemy",
        "fastapi",
        "httpx2",
        "pydantic_settings",
        "rich",
    }
    assert set(done.stdout.splitlines()[-1].split()) & heavy == set()
