"""What a value means, and every refusal that names its line; the files themselves are in the corpus."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.ci.errors import (
    AmbiguousFrameworkError,
    AmbiguousValueError,
    ConfigError,
    ConfigUnreadableError,
    KeyPathError,
    NotANumberError,
    UnsupportedFormatError,
)
from service.ci.framework import METHODS
from service.ci.frameworks import FRAMEWORKS
from service.ci.locate import locate, locate_file
from service.ci.located import Located
from service.ci.source import MAX_BYTES
from service.errors import ServiceError
from tuner.methods import METHODS as KNOWN_METHODS
from tuner.snippets import snippets
from tuner.spec import ClipSetting

HF = "output_dir: out\nper_device_train_batch_size: 4\n"


def found(name: str, text: str, **arguments: str | bool) -> Located:
    return locate(Path(name), text.encode(), **arguments)  # type: ignore[arg-type]


def refusal(name: str, text: str, **arguments: str | bool) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        found(name, text, **arguments)
    return caught.value


def all_errors(kind: type[ConfigError] = ConfigError) -> list[type[ConfigError]]:
    return [each for child in kind.__subclasses__() for each in (child, *all_errors(child))]


def test_every_error_has_a_code_of_its_own_and_is_a_usage_error() -> None:
    errors = all_errors()
    assert len({each.code for each in errors} | {ConfigError.code, ServiceError.code}) == len(errors) + 2
    assert {each.exit_code for each in errors} == {2}
    assert all(each.__doc__ for each in errors)


def test_kinds_are_methods_of_ours() -> None:
    assert {method for method in METHODS.values() if method} <= set(KNOWN_METHODS)


@pytest.mark.parametrize("name", sorted(FRAMEWORKS))
def test_row_is_complete(name: str) -> None:
    row = FRAMEWORKS[name]
    assert row.places, "a framework without a place can't be found"
    for place in row.places:
        assert all(part for part in place.path)
        assert set(place.kinds.values()) <= set(METHODS)
        assert bool(place.kinds) is bool(place.kind_keys)
    assert (row.off == "switch") is any(place.switch_key for place in row.places)


@pytest.mark.parametrize(
    ("framework", "snippet", "text"),
    [("transformers", "huggingface", HF), ("lightning", "lightning", "seed_everything: 1\n")],
)
@pytest.mark.parametrize("setting", ["global_norm:0.42", "value:0.42", "none"])
def test_snippets_that_we_print_are_read_back_as_the_setting(
    framework: str, snippet: str, text: str, setting: str
) -> None:
    """What `tuner.snippets` tells people to paste is what the table reads."""
    clip = ClipSetting.parse(setting)
    pasted = snippets(clip).get(snippet)
    if pasted is None:
        assert (framework, setting) == ("transformers", "value:0.42"), "Transformers has no clipping by value"
        return
    assert found("a.yaml", text + pasted.replace(", ", "\n") + "\n").setting == clip


def test_value_of_the_table_keeps_the_users_spelling() -> None:
    located = found("a.yaml", HF + "max_grad_norm: 1e0 # x")
    assert (located.spelled, located.value, str(located)) == (
        "1e0",
        1.0,
        "a.yaml:3 max_grad_norm: 1e0 (Hugging Face Transformers)",
    )
    assert str(found("a.yaml", HF)) == (
        "a.yaml max_grad_norm: 1, implicit: the key is not set (Hugging Face Transformers)"
    )
    assert found("ds_a.json", '{"zero_optimization": {}, "bf16": {}}').spelled == "off"


@pytest.mark.parametrize(
    ("name", "text", "setting"),
    [
        ("a.yaml", HF + "max_grad_norm: 0", "none"),
        ("a.yaml", HF + "max_grad_norm: -1", "none"),
        ("a.yaml", HF + "max_grad_norm: .inf", "none"),
        ("a.yaml", HF + "max_grad_norm: 2", "global_norm:2"),
        ("a.toml", '[job]\ndump_folder = "x"\n[training]\nmax_norm = inf\n', "none"),
        ("a.py", 'Trainer(gradient_clip_val=float("inf"))', "none"),
        ("args.yaml", "clip_mode: agc\nclip_grad: 0.01\nopt: sgd", "agc:0.01"),
        # Zero does not turn timm's clipping off: no setting of a study is that.
        ("args.yaml", "clip_mode: norm\nclip_grad: 0\nopt: sgd", None),
        ("a.json", '{"class_name": "Adam", "config": {"clipnorm": 1.0}}', None),
    ],
)
def test_value_as_a_setting_of_a_study(name: str, text: str, setting: str | None) -> None:
    assert found(name, text).setting == (None if setting is None else ClipSetting.parse(setting))


def test_switched_off_number_is_off() -> None:
    text = "SOLVER:\n  BASE_LR: 1\n  CLIP_GRADIENTS: {%sCLIP_VALUE: 1.0}\n"
    assert found("a.yaml", text % "ENABLED: True, ").setting == ClipSetting.parse("value:1.0")
    assert found("a.yaml", text % "ENABLED: false, ").is_off
    assert found("a.yaml", text % "").is_off, "its default is off"
    no_value = "SOLVER:\n  BASE_LR: 1\n  IMS_PER_BATCH: 2\n  CLIP_GRADIENTS: {ENABLED: %s}\n"
    assert found("a.yaml", no_value % "True").setting == ClipSetting.parse("value:1.0")
    assert found("a.yaml", no_value % "False").spelled == "off"


def test_key_tells_its_kind_if_every_framework_means_the_same() -> None:
    text = "optimizer: {max_grad_norm: 1.0, grad_clip: 2.0, gradient_clip_val: 3.0, gradient_clip_algorithm: value}"
    norm = found("a.yaml", text, key="optimizer.max_grad_norm")
    assert (norm.kind, norm.framework) == ("norm", None)
    # RLlib and ESPnet choose its kind differently.
    assert found("a.yaml", text, key="optimizer.grad_clip").kind is None
    assert found("a.yaml", text, key="optimizer.grad_clip", framework="espnet").kind == "norm"
    assert found("a.yaml", text, key="optimizer.gradient_clip_val").kind == "value"


def test_key_of_a_script_is_its_flag() -> None:
    text = "python a.py --x.clip 1.0 --clip 2.0\n"
    assert found("a.sh", text, key="--clip").value == 2.0
    assert found("a.sh", text, key="--x.clip").key == "--x.clip"


def test_script_without_an_ending_is_told_by_its_first_line() -> None:
    assert found("launch", "#!/usr/bin/env bash\nrun --clip-norm 0.1 --arch x\n").value == 0.1
    with pytest.raises(UnsupportedFormatError, match=r"no ending is no known format: use one of \.bash"):
        found("launch", "#!/usr/bin/python\nx = 1\n")


def test_framework_decides_what_its_keys_mean() -> None:
    text = "max_grad_norm: 1.0\n"
    assert "axolotl, llama-factory, transformers, olmo-core, sb3, speechbrain, opacus" in str(
        refusal("a.yaml", text)
    )
    assert "holds no clip value that is known" in str(refusal("a.yaml", "lr: 1"))
    assert found("a.yaml", text, framework="speechbrain").framework is FRAMEWORKS["speechbrain"]
    wrong = refusal("a.yaml", text, framework="megatron")
    assert isinstance(wrong, KeyPathError)
    assert "Megatron-LM keeps no clip value in yaml files" in str(wrong)


def test_rivals_that_read_a_file_differently_are_named() -> None:
    text = HF + "max_grad_norm: 1.0\nopt_class: x\n"
    error = refusal("a.yaml", text.replace("output_dir: out\n", ""))
    assert isinstance(error, AmbiguousFrameworkError)
    assert "transformers or speechbrain" in str(error)


def test_default_of_a_file_that_only_looks_alike_is_not_claimed() -> None:
    """One common key is no reason to say that a training clips at 1.0."""
    assert isinstance(refusal("a.yaml", "learning_rate: 1\noutput_dir: x\n"), AmbiguousFrameworkError)


def test_several_documents_with_defaults_only_are_the_first() -> None:
    located = found("a.yaml", f"{HF}---\n{HF}")
    assert (located.is_implicit, located.document) == (True, 0)


def test_nulls_give_way_to_the_number_that_is_set() -> None:
    text = '{"class_name": "SGD", "config": {"clipnorm": null, "global_clipnorm": null, "clipvalue": 0.5}}'
    assert found("a.json", text).key == "config.clipvalue"
    all_null = found("a.json", text.replace("0.5", "null"))
    assert (all_null.key, all_null.is_off) == ("config.global_clipnorm", True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_grad_norm: yes", "max_grad_norm is 'yes', no number: write a number"),
        ("max_grad_norm: 010", "max_grad_norm is '010', no number"),
        ("max_grad_norm: 1:30", "no number"),
        ("max_grad_norm: .nan", "no number"),
        ("max_grad_norm: ''", "max_grad_norm is 'empty', no number"),
        ("max_grad_norm: [1.0]", "max_grad_norm is a list: name the number in it with --key"),
        ("max_grad_norm: {a: 1}", "max_grad_norm is a mapping"),
        ("max_grad_norm: |\n  1.0", "block of lines"),
        ("max_grad_norm: !!str 1.0", "tagged tag:yaml.org,2002:str: remove the tag"),
    ],
)
def test_what_is_no_number_is_told(text: str, said: str) -> None:
    error = refusal("a.yaml", HF + text)
    assert isinstance(error, NotANumberError)
    assert error.line == 3
    assert said in str(error)


@pytest.mark.parametrize("text", ["{{ clip }}", "${clip:}", "$(clip)", "<clip>"])
def test_templates_are_references(text: str) -> None:
    assert refusal("a.yaml", f'{HF}max_grad_norm: "{text}"').code == "interpolated_value"


def test_reference_that_leads_nowhere_or_to_several_is_not_followed() -> None:
    nowhere = refusal("a.yaml", HF + "max_grad_norm: ${clip}", follow=True)
    assert "leads to nothing in this file" in str(nowhere)
    several = refusal("a.yaml", HF + "max_grad_norm: ${clip}\nclip: 1\nclip: 2", follow=True)
    assert "leads to several values" in str(several)


def test_followed_value_names_both_lines() -> None:
    located = found("a.yaml", "c: &c\n  max_grad_norm: 0.5\n" + HF + "<<: *c\n", follow=True)
    assert (located.line, located.followed, located.key) == (2, 5, "max_grad_norm")
    assert found("a.yaml", HF + "max_grad_norm: 1.0", follow=True).followed is None


def test_several_calls_are_not_guessed_among() -> None:
    text = "clip_grad_norm_(a, 1.0)\nclip_grad_norm_(b, 2.0)\n"
    error = refusal("a.py", text)
    assert isinstance(error, AmbiguousValueError)
    assert "clip_grad_norm_().1 in line 1, clip_grad_norm_().1 in line 2" in str(error)


def test_order_of_the_norm_is_the_kind() -> None:
    assert found("a.py", "clip_grad_norm_(p, 1.0, float('inf'))").kind == "inf_norm"
    assert found("a.py", "clip_grad_norm_(p, max_norm=1.0, norm_type=2.0)").kind == "norm"
    assert "so that the kind of the number is unknown" in str(refusal("a.py", "clip_grad_norm_(p, 1.0, 3)"))


def test_missing_key_tells_how_far_the_path_leads() -> None:
    error = refusal("a.yaml", "train: {clip: 1, lr: 2}", key="train.max_norm")
    assert "has no value under train.max_norm; under train are: clip, lr" in str(error)


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreadableError, match="can't be read: No such file"):
        locate_file(tmp_path / "a.yaml")
    with pytest.raises(ConfigUnreadableError, match="is no regular file"):
        locate_file(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigUnreadableError, match="is no regular file"):
        locate_file(tmp_path / "pipe.yaml")
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(
        ConfigUnreadableError, match=f"has {MAX_BYTES + 1} bytes, but a config may have at most"
    ):
        locate_file(large)


def test_symbolic_link_to_a_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(HF + "max_grad_norm: 0.5\n")
    (tmp_path / "link.yaml").symlink_to("a.yaml")
    assert locate_file(tmp_path / "link.yaml").value == 0.5


def test_default_is_not_claimed_where_the_key_stands_elsewhere() -> None:
    error = refusal("a.yaml", HF + "training:\n  max_grad_norm: 0.3\n")
    assert isinstance(error, AmbiguousFrameworkError)
    assert error.line == 4
    assert str(error).endswith("or the key with --key, for example training.max_grad_norm")
    given = refusal("a.yaml", HF + "training:\n  max_grad_norm: 0.3\n", framework="transformers")
    assert isinstance(given, KeyPathError)
    assert given.line == 4
    assert "Hugging Face Transformers does not read training.max_grad_norm" in str(given)
    deeper = refusal("a.yaml", HF + "a: {b: {max_grad_norm: 0.3}}\n")
    assert isinstance(deeper, KeyPathError)
    assert deeper.line == 3


def test_default_needs_a_key_of_the_frameworks_own() -> None:
    """A trainer's state has many of its words, and is no config."""
    state = '{"log_history": [], "max_steps": 3, "save_steps": 5, "logging_steps": 1, "num_train_epochs": 3}'
    assert isinstance(refusal("trainer_state.json", state), AmbiguousFrameworkError)
    # A file name of the framework's own is as good.
    assert found("zero2.json", '{"fp16": {}, "bf16": {}}').is_implicit


def test_framework_without_a_call_has_no_default() -> None:
    error = refusal("a.py", "x = 1\n", framework="pytorch")
    assert isinstance(error, KeyPathError)
    assert "no framework's default is known" in str(error)


def test_toml_number_in_a_text_of_several_lines_is_no_token() -> None:
    error = refusal("a.toml", 'clip = """0.5"""\n', key="clip")
    assert isinstance(error, NotANumberError)
    assert "no single token: write a plain number" in str(error)
