"""Decisions of a rewrite, the diff that is shown, and the bytes that reach the disk."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from service.ci.config import open_config, propose
from service.ci.errors import (
    ConfigChangedError,
    ConfigError,
    ConfigUnreadableError,
    FlagOnlyError,
    KeyPathError,
    KindMismatchError,
    OffSpellingError,
    RewriteRefusedError,
)
from service.ci.locate import locate
from service.ci.located import Token
from service.ci.rewrite import Rewrite, rewrite
from service.ci.write import write
from tuner.spec import ClipSetting

ROOT = Path(__file__).parents[3]
HF = "output_dir: out\nper_device_train_batch_size: 4\n"


def rewritten(name: str, text: str, setting: str, *, add: bool = False, **arguments: str | bool) -> Rewrite:
    content = text.encode()
    located = locate(Path(name), content, **arguments)  # type: ignore[arg-type]
    return rewrite(content, located, ClipSetting.parse(setting), add=add)


def test_diff_is_one_line_with_its_surroundings() -> None:
    result = rewritten("conf/a.yaml", HF + "max_grad_norm: 1.0  # paper\nbf16: true\n", "global_norm:0.4237")
    assert result.diff == (
        "--- a/conf/a.yaml\n+++ b/conf/a.yaml\n@@ -1,4 +1,4 @@\n output_dir: out\n per_device_train_batch_size: 4\n"
        "-max_grad_norm: 1.0  # paper\n+max_grad_norm: 0.424  # paper\n bf16: true\n"
    )
    assert (result.line, result.written) == (3, "0.424")


def test_diff_tells_a_missing_line_end_and_keeps_carriage_returns() -> None:
    no_end = rewritten("a.yaml", HF + "max_grad_norm: 1.0", "global_norm:0.5").diff
    assert no_end.count("\\ No newline at end of file\n") == 2
    crlf = rewritten("a.yaml", (HF + "max_grad_norm: 1.0\n").replace("\n", "\r\n"), "global_norm:0.5").diff
    assert "-max_grad_norm: 1.0\r\n+max_grad_norm: 0.5\r\n" in crlf


def test_same_setting_changes_nothing() -> None:
    for spelled in ("0.5", "'0.5'", "5.0e-1", ".50"):
        result = rewritten("a.yaml", HF + f"max_grad_norm: {spelled}\n", "global_norm:0.5")
        assert (result.is_changed, result.diff) == (False, "")


def test_number_that_yaml_takes_for_a_text_is_respelled() -> None:
    result = rewritten("a.yaml", HF + "max_grad_norm: 1e-3\n", "global_norm:0.001")
    assert result.after.endswith(b"max_grad_norm: 0.001\n")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            "value:0.1",
            "max_grad_norm limits the L2 norm of the whole gradient, but value:0.1 is another kind",
        ),
        ("agc:0.01", "no number is both"),
        ("global_norm_inf:1", "another kind"),
        ("zclip:2.5", "Scale the gradient if its L2 norm is z_threshold standard deviations"),
    ],
)
def test_other_kinds_are_refused_with_the_reason(method: str, said: str) -> None:
    with pytest.raises(KindMismatchError) as caught:
        rewritten("a.yaml", HF + "max_grad_norm: 1.0\n", method)
    assert said in str(caught.value)
    assert caught.value.line == 3


def test_threshold_that_goes_with_another_learning_rate_is_not_written_alone() -> None:
    with pytest.raises(RewriteRefusedError, match=r"learning rate times 0\.5: set both by hand"):
        rewritten("a.yaml", HF + "max_grad_norm: 1.0\n", "global_norm:0.4@0.5")


def test_absent_key_is_not_added_unasked() -> None:
    with pytest.raises(KeyPathError, match=r"is not set, so that 1 holds: use --add to set 0\.42"):
        rewritten("a.yaml", HF, "global_norm:0.42")
    assert not rewritten("a.yaml", HF, "global_norm:1.0").is_changed, "the default is in force"


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("a.yaml", "{output_dir: out, per_device_train_batch_size: 4}\n", {}),
        ("a.json", '{"output_dir": "out", "per_device_train_batch_size": 4}', {}),
        ("a.json", '{\r\n\t"output_dir": "out",\r\n\t"per_device_train_batch_size": 4}', {}),
        ("a.yaml", HF.rstrip("\n"), {}),
        ("a.yaml", f"# c\r\n{HF}".replace("\n", "\r\n"), {}),
        ("a.toml", 'output_dir = "out"\nper_device_train_batch_size = 4\n[x]\ny = 1', {}),
    ],
)
def test_absent_key_is_added_in_any_style(name: str, text: str, arguments: dict[str, str]) -> None:
    result = rewritten(name, text, "global_norm:0.42", add=True, **arguments)
    found = locate(Path(name), result.after)
    assert (found.value, found.is_implicit) == (0.42, False)
    for line in text.split("\n"):
        assert line.strip("{} \r") in result.after.decode()
    assert result.after.count(b"\n") - text.count("\n") in (0, 1)


@pytest.mark.parametrize(
    ("name", "text", "framework"),
    [
        ("a.yaml", "trainer: {}\n", "lightning"),
        ("a.yaml", "x: 1\n", "lightning"),
        ("a.json", "{}", "deepspeed"),
        ("a.yaml", "- a\n", "transformers"),
        ("a.yaml", "t: &t {a: 1}\ntrainer: *t\n", "lightning"),
        ("a.toml", "x = 1\n", "torchtitan"),
        ("a.toml", "training.seq_len = 1\n", "torchtitan"),
        ("a.toml", "training = {seq_len = 1}\n", "torchtitan"),
    ],
)
def test_absent_key_without_a_place_for_one_line_is_refused(name: str, text: str, framework: str) -> None:
    try:
        result = rewritten(name, text, "global_norm:0.42", add=True, framework=framework)
    except RewriteRefusedError as error:
        assert "write" in str(error) and "by hand" in str(error)
    else:
        pytest.fail(f"was added: {result.after!r}")


def test_switch_is_not_turned_on_along_with_the_number() -> None:
    text = "SOLVER:\n  BASE_LR: 1\n  CLIP_GRADIENTS: {ENABLED: false, CLIP_VALUE: 1.0}\n"
    with pytest.raises(RewriteRefusedError, match="switched off: set ENABLED to true first"):
        rewritten("a.yaml", text, "value:0.5")


def test_key_of_no_known_framework_takes_numbers_but_not_off() -> None:
    assert rewritten("a.yaml", "a: {b: 1}\n", "value:0.5", key="a.b").after == b"a: {b: 0.5}\n"
    with pytest.raises(OffSpellingError, match="name it with --framework"):
        rewritten("a.yaml", "a: {b: 1}\n", "none", key="a.b")
    off = rewritten("a.yaml", "a: {b: 1}\n", "none", key="a.b", framework="torchtune")
    assert off.after == b"a: {b: null}\n"


def test_flag_of_a_python_config_is_told() -> None:
    with pytest.raises(FlagOnlyError, match=r"pass --training\.max_norm 0\.42"):
        rewritten("a.py", "TrainingConfig(max_norm=1.0)\n", "global_norm:0.42")
    with pytest.raises(FlagOnlyError, match=r"pass --training\.max_norm inf"):
        rewritten("a.py", "TrainingConfig(max_norm=1.0)\n", "none")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run --opt x --drop-path 1 --clip-grad 1.0 --x\n", "run --opt x --drop-path 1 --x\n"),
        ("run --opt x --drop-path 1 --clip-grad=1.0\n", "run --opt x --drop-path 1\n"),
        (
            "run --opt x --drop-path 1 \\\n  --clip-grad 1.0 \\\n  --x 1\n",
            "run --opt x --drop-path 1 \\\n   \\\n  --x 1\n",
        ),
        ("A=(--opt x --drop-path 1\n  --clip-grad 1.0\n)\n", "A=(--opt x --drop-path 1\n  \n)\n"),
    ],
)
def test_flag_without_a_spelling_of_off_is_left_out(text: str, expected: str) -> None:
    result = rewritten("a.sh", text, "none")
    assert result.after.decode() == expected
    bash = subprocess.run(["bash", "-n"], input=result.after, capture_output=True, check=True)
    assert bash.stderr == b""


@pytest.mark.parametrize("text", ["--clip-grad \\\n  1.0", "--clip-grad '1.0'", '--clip-grad="1.0"'])
def test_flag_is_not_cut_out_of_several_lines_or_quotes(text: str) -> None:
    with pytest.raises(OffSpellingError, match="remove --clip-grad by hand"):
        rewritten("a.sh", f"run --opt x --drop-path 1 {text}\n", "none")


def config(folder: Path, text: str = HF + "max_grad_norm: 1.0\n") -> Path:
    path = folder / "a.yaml"
    path.write_text(text)
    return path


def applied(path: Path, setting: str = "global_norm:0.42") -> Rewrite:
    return propose(open_config(path), ClipSetting.parse(setting))


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o664])
def test_mode_is_kept_and_nothing_is_left_beside(tmp_path: Path, mode: int) -> None:
    path = config(tmp_path)
    path.chmod(mode)
    assert write(applied(path)) == path.resolve()
    assert path.read_text() == HF + "max_grad_norm: 0.42\n"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_is_kept(tmp_path: Path) -> None:
    path = config(tmp_path)
    os.chown(path, 12345, 12346)
    write(applied(path))
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path = config(tmp_path / "real")
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    assert write(applied(link)) == path.resolve()
    assert link.is_symlink()
    assert path.read_text().endswith("max_grad_norm: 0.42\n")


def test_file_that_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = config(tmp_path)
    rewrite_of_old = applied(path)
    path.write_text("other: 1\n")
    with pytest.raises(ConfigChangedError, match="nothing was written"):
        write(rewrite_of_old)
    assert path.read_text() == "other: 1\n"
    path.unlink()
    with pytest.raises(ConfigUnreadableError, match="No such file"):
        write(rewrite_of_old)


def test_unchanged_file_is_not_written(tmp_path: Path) -> None:
    path = config(tmp_path)
    before = path.stat()
    write(applied(path, "global_norm:1.0"))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_file_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    path = config(tmp_path)
    path.chmod(0o444)
    with pytest.raises(ConfigUnreadableError, match="may not be written"):
        write(applied(path))


def test_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    """A name so long that nothing can be written beside it."""
    path = tmp_path / f"{'a' * 245}.yaml"
    path.write_text(HF + "max_grad_norm: 1.0\n")
    with pytest.raises(ConfigUnreadableError, match="can't be written: File name too long"):
        write(applied(path))
    assert path.read_text().endswith("max_grad_norm: 1.0\n")
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_heavy_is_loaded() -> None:
    """A pre-commit hook starts this for each commit."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from service.ci.config import open_config\nfrom service.ci import discover, write\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
        "open_config(Path('tests/data/configs/deepspeed/ds_config.json'))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    imported, used = (set(line.split()) for line in done.stdout.splitlines())
    heavy = {
        "torch",
        "optuna",
        "numpy",
        "sqlalchemy",
        "fastapi",
        "pydantic",
        "rich",
        "httpx2",
        "typer",
        "yaml",
    }
    assert not imported & heavy
    assert not used & heavy, "a JSON file needs no YAML parser"


def test_refusals_carry_file_and_line() -> None:
    with pytest.raises(ConfigError) as caught:
        rewritten("a.yaml", HF + "max_grad_norm: auto\n", "global_norm:1")
    assert (caught.value.path, caught.value.line, caught.value.code) == (Path("a.yaml"), 3, "auto_value")


def test_bytes_that_are_not_those_located_in_are_refused() -> None:
    content = (HF + "max_grad_norm: 1.0\nbf16: true\n").encode()
    located = locate(Path("a.yaml"), content)
    setting = ClipSetting.parse("global_norm:0.42")
    with pytest.raises(ConfigChangedError, match="locate it again"):
        rewrite(b"# new\n" + content, located, setting)
    with pytest.raises(ConfigChangedError):
        rewrite(b"", located, setting)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1.0\nbf16: true", "would change other values as well"),
        ("bf16", "would change other values as well"),
        (" 1.0\nbf16", "would change other values as well"),
        ("1.0\n# comment", "more than one line"),
        ("out\n", "would break the file"),
    ],
)
def test_edit_that_is_not_one_exact_line_is_refused(text: str, said: str) -> None:
    """A token that is not the value's: what is read back decides, whoever computed the position."""
    content = (f"a: [1]\nlist:\n  - 1\n{HF}max_grad_norm: 1.0\nbf16: true\nx: 1.0\n# comment\n").encode()
    located = locate(Path("a.yaml"), content)
    start = content.index(text.encode())
    wrong = replace(located, token=Token(start, start + len(text), text))
    with pytest.raises(RewriteRefusedError, match=said):
        rewrite(content, wrong, ClipSetting.parse("global_norm:0.42"))


def test_override_of_hydra_is_given_null() -> None:
    text = "python train.py trainer.gradient_clip_val=0.5 trainer.max_epochs=3\n"
    off = rewritten("a.sh", text, "none")
    assert off.after.decode() == text.replace("0.5", "null")
    assert locate(Path("a.sh"), off.after).is_off
    assert rewritten("a.sh", off.after.decode(), "global_norm:0.42").after.decode() == text.replace(
        "0.5", "0.42"
    )


def test_write_that_the_disk_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    """No file of the process may grow beyond ten bytes: the new content does not fit."""
    path = config(tmp_path)
    program = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from service.ci.config import open_config, propose\nfrom service.ci.write import write\n"
        "from tuner.spec import ClipSetting\nfrom service.ci.errors import ConfigUnreadableError\n"
        "rewrite = propose(open_config(Path(sys.argv[1])), ClipSetting.parse('global_norm:0.42'))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try:\n    write(rewrite)\nexcept ConfigUnreadableError as error:\n    sys.exit(str(error))\n"
    )
    # Isolated from the environment, so that nothing else in it writes files.
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, cwd=ROOT, env={}
    )
    assert done.returncode == 1
    assert "can't be written: File too large" in done.stderr
    assert path.read_text() == HF + "max_grad_norm: 1.0\n"
    assert list(tmp_path.iterdir()) == [path]
