"""What is registered, by whom, and what becomes of a registration that can't be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from acceptance.packages import install_package

from tuner.errors import SpecError, UnknownWorkloadError
from tuner.workloads import FunctionWorkload, Workload, create_workload, describe_workloads, get_workload
from tuner.workloads.registrations import (
    BUILT_IN,
    Registration,
    Registrations,
    installed,
    parse_registrations,
    parse_sources,
)
from tuner.workloads.registry import WORKLOADS, Registry

MODULE = '''
from dataclasses import dataclass
import torch
from torch import nn
from tuner import Workload
from tuner.optimizers import sgd
from tuner.workloads import parameter, training_function


class Mine(Workload):
    """A class of mine."""

    @dataclass(frozen=True)
    class Parameters:
        width: int = parameter(4, "Units.", low=1, high=64)

    description = "A line."
    objective = "val_error"

    def model(self):
        return nn.Linear(2, self.parameters.width)

    def train_batch(self, step, generator):
        return torch.randn(4, 2, generator=generator)

    def validation_batches(self):
        return [torch.ones(4, 2)]

    def loss(self, model, batch):
        return model(batch).square().mean()

    def optimizer(self):
        return sgd(lr=0.1)


class Unfinished(Workload):
    def model(self):
        return nn.Linear(2, 1)


class BadParameters(Mine):
    @dataclass(frozen=True)
    class Parameters:
        shape: tuple = parameter((1, 2), "A shape.")


def train(trial):
    """A function of mine.

    It does more.
    """


@training_function(objective="val_bleu", parameters=Mine.Parameters, description="Described.")
def described(trial):
    return None


def two(trial, other):
    return None


class Holder:
    train = staticmethod(train)


number = 3
'''


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Modules of a user's, importable in these tests."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "registered_mine.py").write_text(MODULE)
    (folder / "registered_script.py").write_text("import sys\nsys.exit(4)\n")
    (folder / "registered_broken.py").write_text("import no_such_package\n")
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


def registry(**targets: str) -> Registry:
    return Registry(
        Registrations(Registration(name=name, target=each, source="a test") for name, each in targets.items())
    )


def test_built_in_names_are_as_before() -> None:
    assert dict(WORKLOADS) == {each.name: each.target for each in BUILT_IN}
    assert [each.name for each in describe_workloads()] == ["charlm-rnn", "digits-mlp"]
    assert get_workload("digits-mlp").name == "digits-mlp"
    assert create_workload("digits-mlp", {"hidden": 2}).parameters.hidden == 2
    with pytest.raises(UnknownWorkloadError, match="known workloads: charlm-rnn, digits-mlp"):
        get_workload("nope")


def test_class_and_function_are_described_by_what_they_say() -> None:
    found = registry(
        a="registered_mine:Mine",
        b="registered_mine:train",
        c="registered_mine:described",
        d="registered_mine:Holder.train",
    ).describe()
    assert found.refused == ()
    told = {each.name: (each.description, each.objective, len(each.parameters)) for each in found.workloads}
    assert told == {
        "a": ("A line.", "val_error", 1),
        "b": ("A function of mine.", "val_loss", 0),
        "c": ("Described.", "val_bleu", 1),
        "d": ("A function of mine.", "val_loss", 0),
    }
    (width,) = found.workloads[0].parameters
    assert width.to_schema() == {
        "type": "integer",
        "default": 4,
        "description": "Units.",
        "minimum": 1,
        "maximum": 64,
    }


def test_created_with_checked_parameters() -> None:
    known = registry(a="registered_mine:Mine", c="registered_mine:described")
    a, c = known.create("a", {"width": 3}), known.create("c", {"width": 5})
    assert isinstance(a, Workload) and a.parameter_values == {"width": 3}
    assert isinstance(c, FunctionWorkload) and c.parameter_values == {"width": 5}
    for name in ("a", "c"):
        with pytest.raises(SpecError, match=r"parameters.width must be <= 64, got 65"):
            known.create(name, {"width": 65})
        with pytest.raises(SpecError, match=r"parameters.depth is no parameter"):
            known.create(name, {"depth": 1})
    with pytest.raises(UnknownWorkloadError, match="known workloads: a, c"):
        known.create("digits-mlp", {})


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("registered_broken:Mine", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("registered_nowhere:Mine", "ModuleNotFoundError: No module named 'registered_nowhere'"),
        ("registered_mine:Theirs", "AttributeError: module 'registered_mine' has no attribute 'Theirs'"),
        ("registered_script:main", "it ends the program when it is imported; put that under if __name__"),
        (
            "registered_mine:Unfinished",
            "the class still lacks loss, optimizer, train_batch, validation_batches",
        ),
        ("registered_mine:number", "it is of type int; register a subclass of tuner.Workload, or a function"),
        ("registered_mine:Holder", "it is the class Holder; register a subclass of tuner.Workload"),
        ("registered_mine:two", "SpecError: workload 'two' must take exactly one argument, the trial"),
        ("registered_mine:BadParameters", "Parameters.shape must be int, float, str or bool"),
        ("registered_mine", "must name MODULE:ATTRIBUTE, for example my_package.model:MyModel"),
    ],
)
def test_target_that_can_not_be_used_is_refused_with_its_reason_and_hides_no_other(
    target: str, says: str
) -> None:
    known = registry(bad=target, good="registered_mine:Mine")
    found = known.describe()
    assert [each.name for each in found.workloads] == ["good"]
    (refused,) = found.refused
    assert (refused.name, refused.target) == ("bad", target)
    assert says in refused.reason
    if target != "registered_mine:BadParameters":
        with pytest.raises(SpecError, match="workload 'bad' can't be used"):
            known.create("bad", {})


def test_name_without_a_form_is_refused_too() -> None:
    (refused,) = registry(**{"no name": "registered_mine:Mine"}).describe().refused
    assert "letters, digits" in refused.reason


def test_two_registrations_of_a_name_are_an_error_that_names_both() -> None:
    allowed = parse_registrations("mine=a:A,digits-mlp=b:B", source="CLIPTUNE_WORKLOADS")
    with pytest.raises(SpecError) as caught:
        installed(("built_in",), allowed)
    assert str(caught.value) == (
        "workloads register 'digits-mlp' twice: tuner.workloads.digits_mlp:DigitsMlp (built in) and b:B "
        "(CLIPTUNE_WORKLOADS); give one of them another name"
    )


def test_sources_and_allow_list() -> None:
    allowed = parse_registrations(" mine = a.b:C.d ,, ", source="me")
    assert [str(each) for each in allowed] == ["a.b:C.d (me)"]
    assert [each.name for each in installed((), allowed)] == ["mine"]
    assert [each.name for each in installed(("built_in",))] == ["charlm-rnn", "digits-mlp"]
    assert len(installed(())) == 0
    assert parse_sources(" built_in , entry_points") == ("built_in", "entry_points")
    assert parse_sources("none") == parse_sources("") == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mine", "workloads must be NAME=MODULE:ATTRIBUTE, separated by commas, got 'mine'"),
        (
            "mine=a",
            "workload 'mine' must name MODULE:ATTRIBUTE, for example my_package.model:MyModel, got 'a' (me)",
        ),
        ("mine=a:B()", "got 'a:B()' (me)"),
        ("mine=../a:B", "got '../a:B' (me)"),
        ("my name=a:B", "got 'my name' (me)"),
        ("=a:B", "got '' (me)"),
    ],
)
def test_allow_list_of_another_form_is_refused(text: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_registrations(text, source="me")
    assert says in str(caught.value)


def test_unknown_source_is_refused() -> None:
    with pytest.raises(SpecError, match="must be none or some of built_in, entry_points"):
        parse_sources("built_in,pip")


def test_registrations_travel_as_json() -> None:
    known = installed(("built_in",), parse_registrations("mine=a:A", source="me"))
    assert Registrations.from_json(known.to_json()).to_json() == known.to_json()
    assert known.find("mine") == Registration(name="mine", target="a:A", source="me")


@pytest.mark.slow
def test_entry_points_of_an_installed_package_are_found(tmp_path: Path) -> None:
    target = install_package(
        tmp_path, MODULE, entry_points={"ours": "ours.model:Mine", "ours-broken": "ours.nothing:Mine"}
    )
    program = dedent(
        f"""
        import sys
        sys.path.append({str(target)!r})
        from tuner.workloads.registrations import installed
        from tuner.workloads.registry import Registry
        known = installed(("entry_points",))
        assert "torch" not in sys.modules and "ours" not in sys.modules
        print([(each.name, str(each)) for each in known])
        found = Registry(known).describe()
        print([each.name for each in found.workloads], [each.reason for each in found.refused])
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "[('ours', 'ours.model:Mine (entry point of our-workloads)'), "
        "('ours-broken', 'ours.nothing:Mine (entry point of our-workloads)')]"
    )
    assert lines[1].startswith("['ours'] [") and "No module named 'ours.nothing'" in lines[1]


def test_reading_registrations_loads_no_torch() -> None:
    program = (
        "import sys\nfrom tuner.workloads.registrations import installed\n"
        "import tuner.workloads, tuner.workloads.registry\nassert len(installed(('built_in', 'entry_points'))) >= 2\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_package_has_no_other_names() -> None:
    import tuner.workloads

    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        tuner.workloads.Nothing  # noqa: B018
