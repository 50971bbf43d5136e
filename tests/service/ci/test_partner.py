"""A training config and the DeepSpeed config that it names must not hold two thresholds."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.ci.config import open_config, propose
from service.ci.errors import ConfigSyntaxError, ConflictingValuesError
from tuner.spec import ClipSetting

HF = "output_dir: out\nper_device_train_batch_size: 4\n"
DEEPSPEED = '{\n  "zero_optimization": {"stage": 2},\n  "gradient_clipping": %s\n}\n'


def pair(folder: Path, max_grad_norm: str, gradient_clipping: str, *, named: str = "ds.json") -> Path:
    """A training config in ``conf/`` and, at the repository's root, the DeepSpeed config that it names."""
    (folder / ".git").mkdir()
    (folder / "ds.json").write_text(DEEPSPEED % gradient_clipping)
    (folder / "conf").mkdir()
    path = folder / "conf" / "train.yaml"
    path.write_text(f"{HF}deepspeed: {named}\n{max_grad_norm}")
    return path


def test_two_numbers_that_differ_are_an_error_with_both_lines(tmp_path: Path) -> None:
    path = pair(tmp_path, "max_grad_norm: 1.0\n", "0.5")
    with pytest.raises(ConflictingValuesError) as caught:
        open_config(path)
    assert str(caught.value) == (
        f"{path}:4: max_grad_norm is 1.0, but {tmp_path / 'ds.json'}:3 gradient_clipping is 0.5: "
        'set the latter to "auto"'
    )


def test_default_that_differs_is_an_error_too(tmp_path: Path) -> None:
    path = pair(tmp_path, "", "0.5")
    with pytest.raises(ConflictingValuesError, match=r"max_grad_norm is 1, but .*gradient_clipping is 0\.5"):
        open_config(path)


@pytest.mark.parametrize(
    ("max_grad_norm", "gradient_clipping"),
    [
        ("max_grad_norm: 0.5\n", "0.5"),
        ("max_grad_norm: 0\n", "0.0"),
        ("", "1"),
        ("max_grad_norm: 9\n", '"auto"'),
    ],
)
def test_values_that_agree_are_none(tmp_path: Path, max_grad_norm: str, gradient_clipping: str) -> None:
    config = open_config(pair(tmp_path, max_grad_norm, gradient_clipping))
    assert (config.partner is None) is ("auto" in gradient_clipping)


def test_new_value_must_agree_as_well(tmp_path: Path) -> None:
    path = pair(tmp_path, "max_grad_norm: 0.5\n", "0.5")
    config = open_config(path)
    for setting in ("global_norm:0.42", "none"):
        with pytest.raises(ConflictingValuesError, match=f"max_grad_norm would be {setting}"):
            propose(config, ClipSetting.parse(setting))
    assert not propose(config, ClipSetting.parse("global_norm:0.5")).is_changed


def test_auto_takes_any_new_value(tmp_path: Path) -> None:
    config = open_config(pair(tmp_path, "max_grad_norm: 0.5\n", '"auto"'))
    assert propose(config, ClipSetting.parse("global_norm:0.42")).is_changed


def test_inline_deepspeed_config_is_compared(tmp_path: Path) -> None:
    path = pair(tmp_path, "max_grad_norm: 1.0\n", "9", named="{gradient_clipping: 0.5}")
    with pytest.raises(ConflictingValuesError, match=r"train\.yaml:3 deepspeed\.gradient_clipping is 0\.5"):
        open_config(path)
    path.write_text(f"{HF}deepspeed: {{zero_optimization: {{stage: 2}}}}\nmax_grad_norm: 1.0\n")
    assert open_config(path).partner is None


def test_file_is_looked_for_up_to_the_repositorys_root(tmp_path: Path) -> None:
    inner = tmp_path / "repository"
    inner.mkdir()
    (tmp_path / "outside.json").write_text(DEEPSPEED % "0.5")
    path = pair(inner, "max_grad_norm: 1.0\n", "1.0", named="outside.json")
    assert open_config(path).partner is None, "beyond the root is another project"


def test_deepspeed_config_that_is_broken_is_told(tmp_path: Path) -> None:
    path = pair(tmp_path, "max_grad_norm: 1.0\n", "")
    with pytest.raises(ConfigSyntaxError, match=r"ds\.json:4: is not valid json"):
        open_config(path)


def test_deepspeed_config_without_the_key_is_no_second_number(tmp_path: Path) -> None:
    path = pair(tmp_path, "max_grad_norm: 1.0\n", "1")
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    assert open_config(path).partner is None
