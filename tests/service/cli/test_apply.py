"""`cliptune apply`: one token changes, the diff says which, and what can't be written is refused with its line."""

from __future__ import annotations

from typing import Any

import pytest

from tuner.evidence import Verdict
from tuner.spec import OFF_SETTING

WORKLOAD = ("--workload", "charlm-rnn")


@pytest.fixture
def study(served: Any) -> Any:
    """A finished study of charlm-rnn: 0.42."""
    created = served.study()
    served.succeed(created["id"])
    return created


@pytest.mark.usefixtures("study")
def test_value_is_written_and_check_says_ok(repository: Any, cliptune: Any) -> None:
    path = repository.config("1.0  # by hand", "conf/train.yaml")
    path.chmod(0o600)
    before = path.read_text()
    assert cliptune("check", *WORKLOAD).code == 1
    ended = cliptune("apply", "conf/train.yaml", *WORKLOAD)
    assert (ended.code, ended.err) == (0, "")
    changed = [line for line in ended.out.splitlines() if line[:1] in "+-"]
    assert changed == [
        "--- a/conf/train.yaml",
        "+++ b/conf/train.yaml",
        "-max_grad_norm: 1.0  # by hand",
        "+max_grad_norm: 0.42  # by hand",
    ]
    assert path.read_text() == before.replace("1.0", "0.42")
    assert path.stat().st_mode & 0o777 == 0o600
    assert cliptune("check", *WORKLOAD).code == 0
    again = cliptune("apply", "conf/train.yaml", *WORKLOAD)
    assert (again.code, again.out) == (0, "")
    assert again.err.startswith("cliptune: already applied: conf/train.yaml:3 max_grad_norm: 0.42")


@pytest.mark.usefixtures("study")
def test_dry_run_prints_the_diff_alone(repository: Any, cliptune: Any) -> None:
    path = repository.config("1.0")
    ended = cliptune("apply", "train.yaml", *WORKLOAD, "--dry-run")
    assert ended.code == 0 and "+max_grad_norm: 0.42\n" in ended.out
    assert path.read_text().endswith("max_grad_norm: 1.0\n")


@pytest.mark.usefixtures("study")
def test_line_ends_survive_the_diff(repository: Any, cliptune: Any) -> None:
    path = repository.root / "train.yaml"
    path.write_bytes(b"\xef\xbb\xbfoutput_dir: out\r\nper_device_train_batch_size: 8\r\nmax_grad_norm: '1.0'")
    assert cliptune("apply", "train.yaml", *WORKLOAD).code == 0
    assert path.read_bytes() == (
        b"\xef\xbb\xbfoutput_dir: out\r\nper_device_train_batch_size: 8\r\nmax_grad_norm: '0.42'"
    )


@pytest.mark.usefixtures("study")
def test_absent_key_is_added_only_if_asked(repository: Any, cliptune: Any) -> None:
    path = repository.root / "train.yaml"
    path.write_text("output_dir: out\nper_device_train_batch_size: 8\nwarmup_steps: 1\n")
    before = path.read_bytes()
    refused = cliptune("apply", "train.yaml", *WORKLOAD, "--framework", "transformers")
    assert refused.code == 2 and "use --add to set 0.42 [missing_key]" in refused.err
    assert path.read_bytes() == before
    added = cliptune("apply", "train.yaml", *WORKLOAD, "--framework", "transformers", "--add")
    assert added.code == 0
    assert path.read_bytes() == before + b"max_grad_norm: 0.42\n"
    assert cliptune("check", "train.yaml", *WORKLOAD).code == 0


@pytest.mark.parametrize(
    ("value", "line", "code"),
    [
        ("${oc.env:CLIP}", 3, "interpolated_value"),
        ("auto", 3, "auto_value"),
        ("[1.0]", 3, "not_a_number"),
        ("1.0\nmax_grad_norm: 2.0", 3, "duplicate_key"),
    ],
)
@pytest.mark.usefixtures("study")
def test_value_that_is_no_number_of_its_own_is_refused(
    repository: Any, cliptune: Any, value: str, line: int, code: str
) -> None:
    path = repository.config(value)
    before = path.read_bytes()
    ended = cliptune("apply", "train.yaml", *WORKLOAD)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"cliptune: train.yaml:{line}: ") and ended.err.endswith(f"[{code}]\n")
    assert path.read_bytes() == before


@pytest.mark.usefixtures("study")
def test_alias_is_followed_if_asked(repository: Any, cliptune: Any) -> None:
    path = repository.config(
        "*clip", before="output_dir: out\nper_device_train_batch_size: 8\nc: &clip 1.0\n"
    )
    refused = cliptune("apply", "train.yaml", *WORKLOAD)
    assert refused.code == 2 and "[aliased_value]" in refused.err
    followed = cliptune("apply", "train.yaml", *WORKLOAD, "--follow")
    assert followed.code == 0 and "c: &clip 0.42\n" in path.read_text()


@pytest.mark.usefixtures("study")
def test_key_of_another_kind_is_refused(repository: Any, cliptune: Any) -> None:
    path = repository.root / "fit.yaml"
    path.write_text("trainer:\n  gradient_clip_algorithm: value\n  gradient_clip_val: 1.0\n")
    before = path.read_bytes()
    ended = cliptune("apply", "fit.yaml", *WORKLOAD)
    assert ended.code == 2 and ended.err.startswith("cliptune: fit.yaml:3: ")
    assert ended.err.endswith("[kind_mismatch]\n")
    assert path.read_bytes() == before


def test_off_is_written_in_the_frameworks_spelling(served: Any, repository: Any, cliptune: Any) -> None:
    served.succeed(served.study()["id"], verdict=Verdict.DO_NOT_CLIP, setting=OFF_SETTING, interval=None)
    path = repository.config("1.0")
    assert cliptune("apply", "train.yaml", *WORKLOAD).code == 0
    assert path.read_text().endswith("max_grad_norm: 0.0\n")
    assert cliptune("check", *WORKLOAD).code == 0


# ---- nothing to apply ----


@pytest.mark.parametrize(
    ("verdict", "value", "words"),
    [
        (Verdict.NO_DIFFERENCE, "1.0", "clipping makes no difference here"),
        (Verdict.INCONCLUSIVE, "1.0", "about 4 further fresh seeds would settle it"),
    ],
)
def test_answer_that_asks_for_no_change_changes_nothing(
    repository: Any, cliptune: Any, verdict: Verdict, value: str, words: str
) -> None:
    repository.keep("train.yaml", verdict=verdict, setting="none", more_seeds=4)
    path = repository.config(value)
    before = path.read_bytes()
    ended = cliptune("apply", "train.yaml", "--offline")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith("cliptune: nothing to apply: max_grad_norm 1.0") and words in ended.err
    assert path.read_bytes() == before


def test_threshold_that_hurts_is_taken_out_where_clipping_makes_no_difference(
    repository: Any, cliptune: Any
) -> None:
    repository.keep("train.yaml", verdict=Verdict.NO_DIFFERENCE, setting="none")
    path = repository.config("2.0")
    assert cliptune("check", "--offline").code == 1
    assert cliptune("apply", "train.yaml", "--offline").code == 0
    assert path.read_text().endswith("max_grad_norm: 0.0\n")
    assert cliptune("check", "--offline").code == 0


@pytest.mark.usefixtures("served")
def test_without_a_recommendation_nothing_is_written(repository: Any, cliptune: Any) -> None:
    path = repository.config("1.0")
    ended = cliptune("apply", "train.yaml", *WORKLOAD)
    assert (ended.code, ended.out) == (0, "")
    assert "nothing to apply: max_grad_norm 1.0 was not judged" in ended.err
    assert path.read_text().endswith("max_grad_norm: 1.0\n")


# ---- what it trains, and where that is known from ----


def test_lock_answers_offline(repository: Any, cliptune: Any) -> None:
    repository.keep("train.yaml")
    path = repository.config("1.0")
    assert cliptune("apply", "train.yaml", "--offline").code == 0
    assert path.read_text().endswith("max_grad_norm: 0.42\n")


def test_lock_with_several_keys_asks_for_one(repository: Any, cliptune: Any) -> None:
    from service.ci.lock import LOCK_FILE, read_lock, write_lock

    repository.keep("own.yaml", key="a.clip_grad_norm")
    lock = read_lock(repository.root / LOCK_FILE)
    kept = lock.find("own.yaml", "a.clip_grad_norm")
    assert kept is not None
    write_lock(repository.root / LOCK_FILE, lock.with_entry("own.yaml", "b.clip_grad_norm", kept))
    path = repository.root / "own.yaml"
    path.write_text("a: {clip_grad_norm: 1.0}\nb: {clip_grad_norm: 2.0}\n")
    refused = cliptune("apply", "own.yaml", "--offline")
    assert refused.code == 2 and "name one with --key" in " ".join(refused.err.split())
    assert cliptune("apply", "own.yaml", "--offline", "--key", "b.clip_grad_norm").code == 0
    assert path.read_text() == "a: {clip_grad_norm: 1.0}\nb: {clip_grad_norm: 0.42}\n"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["train.yaml"], 2, "workload_not_named"),
        (["train.yaml", "--offline"], 2, "lock_not_found"),
        (["gone.yaml", *WORKLOAD], 2, "config_unreadable"),
        (["train.yaml", *WORKLOAD], 3, "key_missing"),
        (["train.yaml", *WORKLOAD, "--framework", "caffe"], 2, "unknown_framework"),
    ],
)
def test_error_has_its_code(
    repository: Any, cliptune: Any, arguments: list[str], exit_code: int, code: str
) -> None:
    repository.config("1.0")
    ended = cliptune("apply", *arguments)
    assert (ended.code, ended.out) == (exit_code, "") and ended.err.endswith(f"[{code}]\n")


def test_text_of_the_service_stays_in_its_line(repository: Any, cliptune: Any) -> None:
    repository.keep(
        "train.yaml", verdict=Verdict.NO_DIFFERENCE, setting="none", reason="so\n::error::\x1b[31mbad"
    )
    repository.config("1.0")
    ended = cliptune("apply", "train.yaml", "--offline")
    assert ended.err.count("\n") == 1 and "so\\n::error::\\x1b[31mbad" in ended.err
