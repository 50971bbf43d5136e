"""The clipper of a user's own loop: equal to PyTorch's functions, equal to the clippers that trained the lanes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tuner import Clipper
from tuner.clippers.plain import PlainClipper
from tuner.errors import SpecError, UnknownMethodError
from tuner.inline import CliptuneWarning
from tuner.inline.errors import NonFiniteGradientError, ParametersChangedError
from tuner.methods import METHODS
from tuner.spec import ClipSetting

#: A setting of every method that acts on gradients of norm about 3.
SETTINGS = {
    "none": "none",
    "global_norm": "global_norm:0.35",
    "global_norm_inf": "global_norm_inf:0.2",
    "value": "value:0.3",
    "per_tensor_norm": "per_tensor_norm:1.5",
    "agc": "agc:0.1",
    "autoclip": "autoclip:50",
    "zclip": "zclip:1.5",
    "adagc": "adagc:1.1",
    "norm_growth": "norm_growth:1.05",
    "quantile": "quantile:0.5",
    "skip_step": "skip_step:3",
}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Linear(3, 1))


def fill(model: nn.Module, seed: int, factor: float = 1.0) -> None:
    """Gradients of one step, the same for models of the same shapes."""
    generator = torch.Generator().manual_seed(seed)
    for each in model.parameters():
        each.grad = torch.randn(each.shape, generator=generator).mul(factor).to(each.dtype)


def grads(model: nn.Module) -> list[Tensor | None]:
    return [each.grad for each in model.parameters()]


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for left, right in zip(grads(one), grads(other), strict=True):
        if left is None or right is None:
            assert left is right
        else:
            assert torch.equal(left, right)


def test_every_method_has_a_setting_here() -> None:
    assert set(SETTINGS) == set(METHODS)


@pytest.mark.parametrize("max_norm", [1e-3, 0.35, 1.0, 4.5, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_global_norm_is_clip_grad_norm_to_the_bit(max_norm: float, dtype: torch.dtype) -> None:
    ours, theirs = network().to(dtype), network().to(dtype)
    clipper = Clipper.from_setting(ClipSetting(method="global_norm", threshold=max_norm))
    for step in range(5):
        fill(ours, step, factor=10.0 ** (step - 2))
        fill(theirs, step, factor=10.0 ** (step - 2))
        norm = clipper(ours.parameters())
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        assert torch.equal(norm, expected)
        assert (norm.dtype, norm.shape, norm.device) == (expected.dtype, expected.shape, expected.device)
        assert_same_bits(ours, theirs)


def test_some_parameters_have_no_gradient() -> None:
    ours, theirs = network(), network()
    for model in (ours, theirs):
        fill(model, 0)
        model[0].weight.grad = None
    norm = Clipper.from_setting("global_norm:0.5")(ours.parameters())
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5))
    assert_same_bits(ours, theirs)


def test_frozen_parameter_with_an_old_gradient_counts_as_for_pytorch() -> None:
    ours, theirs = network(), network()
    for model in (ours, theirs):
        fill(model, 0)
        model[0].requires_grad_(False)
    norm = Clipper.from_setting("global_norm:0.5")(ours)
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5))
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize(
    "setting", ["none", "global_norm:1", "global_norm_inf:1", "value:1", "per_tensor_norm:1"]
)
def test_no_gradient_at_all_has_norm_zero(setting: str) -> None:
    model = network()
    clipper = Clipper.from_setting(setting)
    assert clipper(model.parameters()) == torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) == 0
    assert not clipper.last.clipped
    assert clipper.record().num_steps == 1


def test_module_tensor_and_iterables_are_taken() -> None:
    model = network()
    fill(model, 0)
    expected = torch.nn.utils.get_total_norm([each for each in grads(model) if each is not None])
    clipper = Clipper.from_setting("none")
    for parameters in (model, model.parameters(), list(model.parameters()), tuple(model.parameters())):
        assert torch.equal(clipper(parameters), expected)
    weight = model[0].weight
    assert weight.grad is not None
    assert torch.equal(clipper(weight), weight.grad.norm())
    assert clipper.num_steps == 5


def test_used_up_generator_is_warned_of() -> None:
    model = network()
    parameters: Iterator[nn.Parameter] = model.parameters()
    list(parameters)
    with pytest.warns(CliptuneWarning, match="a generator can be read only once") as told:
        Clipper.from_setting("global_norm:1")(parameters)
    assert told[0].filename == __file__


@pytest.mark.parametrize("method", SETTINGS)
def test_every_method_does_what_trained_the_lanes(method: str) -> None:
    """In place against rows of gradients: bits may differ by the order of a norm's sum, decisions may not."""
    ours, theirs = network(), network()
    inline = Clipper.from_setting(SETTINGS[method], reference_norm=3.0)
    plain = PlainClipper(SETTINGS[method], theirs, reference_norm=3.0)
    acted = 0
    for step in range(130):
        is_spike = step % 40 == 39
        fill(ours, step, factor=4.0 if is_spike else 1.0)
        fill(theirs, step, factor=4.0 if is_spike else 1.0)
        loss = 50.0 if is_spike else 1.0
        norm = inline(ours.parameters(), loss=loss)
        expected = plain.clip(loss)
        last = inline.last
        torch.testing.assert_close(norm, expected.norm[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(last.scale, expected.scale[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(last.clipped_norm, last.norm * last.scale, rtol=1e-5, atol=0)
        for name in ("clipped", "skipped", "finite"):
            assert bool(getattr(last, name)) == bool(getattr(expected, name)), (name, step)
        for left, right in zip(grads(ours), grads(theirs), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)
        acted += bool(last.clipped)
    assert (acted > 0) == (method != "none")


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gradient_that_is_not_finite_is_left_as_it_is(method: str, value: float) -> None:
    model = network()
    clipper = Clipper.from_setting(SETTINGS[method])
    fill(model, 1)
    clipper(model.parameters())
    state = clipper.state_dict()["method"]
    fill(model, 2)
    assert model[2].weight.grad is not None
    model[2].weight.grad[0, 0] = value
    before = copy.deepcopy(model)
    for mine, other in zip(before.parameters(), model.parameters(), strict=True):
        mine.grad = None if other.grad is None else other.grad.clone()
    assert not clipper(model.parameters()).isfinite()
    for left, right in zip(grads(before), grads(model), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    last = clipper.last
    assert (bool(last.finite), bool(last.clipped), bool(last.skipped), float(last.scale)) == (
        False,
        False,
        False,
        1,
    )
    assert all(torch.equal(state[name], rows) for name, rows in clipper.state_dict()["method"].items())
    record = clipper.record()
    assert (record.num_steps, record.num_non_finite, record.divergence_step) == (2, 1, None)


def test_pytorch_spoils_a_gradient_that_is_not_finite_and_we_do_not() -> None:
    """The one difference to ``clip_grad_norm_``, stated in the docstring."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, torch.inf])
    Clipper.from_setting("global_norm:1")(weight)
    assert weight.grad.tolist() == [1.0, math.inf]
    torch.nn.utils.clip_grad_norm_(weight, 1.0)
    assert weight.grad[0] == 0 and weight.grad[1].isnan()


@pytest.mark.parametrize("method", SETTINGS)
def test_error_if_nonfinite_raises_and_leaves_everything(method: str) -> None:
    model = network()
    clipper = Clipper.from_setting(SETTINGS[method])
    fill(model, 0)
    assert clipper(model.parameters(), error_if_nonfinite=True).isfinite()
    assert model[0].bias.grad is not None
    model[0].bias.grad[0] = math.inf
    with pytest.raises(NonFiniteGradientError, match="the gradient's norm is inf") as raised:
        clipper(model.parameters(), error_if_nonfinite=True)
    assert isinstance(raised.value, RuntimeError), "what clip_grad_norm_ raises"
    assert raised.value.code == "gradient_not_finite"
    assert clipper.num_steps == clipper.record().num_steps == 1


def test_gradients_keep_their_storage() -> None:
    for setting in SETTINGS.values():
        model = network()
        fill(model, 0)
        before = grads(model)
        Clipper.from_setting(setting)(model.parameters())
        assert all(new is old for new, old in zip(grads(model), before, strict=True)), setting


@pytest.mark.parametrize("setting", ["global_norm:0.5", "value:0.1", "per_tensor_norm:0.5", "zclip:2"])
def test_gradients_of_several_types_are_clipped_together(setting: str) -> None:
    model = network()
    model[0].to(torch.bfloat16)
    fill(model, 0)
    norm = Clipper.from_setting(setting)(model.parameters())
    whole = torch.cat([each.float().reshape(-1) for each in grads(model) if each is not None])
    assert norm.isfinite()
    assert [each.grad.dtype for each in model.parameters() if each.grad is not None] == [
        torch.bfloat16,
        torch.bfloat16,
        *[torch.float32] * 4,
    ]
    if setting == "global_norm:0.5":
        assert float(whole.norm()) == pytest.approx(0.5, rel=1e-2)


def test_per_tensor_norm_counts_the_parameters_without_a_gradient() -> None:
    """A study's lanes count all trainable tensors, whether or not the loss reached them in this step."""
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(4)]
    weights[0].grad = torch.tensor([5.0])
    Clipper.from_setting("per_tensor_norm:2")(weights)
    assert weights[0].grad.item() == pytest.approx(1.0, rel=1e-5)


def test_method_with_a_memory_refuses_other_parameters() -> None:
    one, other = network(0), network(1)
    fill(one, 0)
    fill(other, 0)
    clipper = Clipper.from_setting("zclip:2")
    clipper(one.parameters())
    with pytest.raises(
        ParametersChangedError, match="zclip:2 remembers the gradients of earlier steps"
    ) as raised:
        clipper(other.parameters())
    assert raised.value.code == "parameters_changed"
    stateless = Clipper.from_setting("agc:0.1")
    stateless(one.parameters())
    stateless(other.parameters())
    assert stateless.num_steps == 2


@pytest.mark.parametrize("setting", ["agc:0.1", "zclip:2", "adagc:1.1", "per_tensor_norm:1"])
def test_other_methods_need_parameters(setting: str) -> None:
    with pytest.raises(ValueError, match="there is nothing to clip: no parameter requires a gradient"):
        Clipper.from_setting(setting)([])


def test_agc_scales_units_of_any_shape_and_counts_missing_gradients_as_zero() -> None:
    """A convolution, a bias, a number without axes, and a matrix that the loss did not reach."""
    torch.manual_seed(0)
    shapes = [(4, 3, 2, 2), (4,), (), (2, 5)]
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        mine.grad = torch.randn(mine.shape)
        other.grad = mine.grad.clone()
    Clipper.from_setting("agc:0.1")(ours)
    PlainClipper("agc:0.1", [(str(index), each) for index, each in enumerate(theirs)]).clip()
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert ours[3].grad is None


def test_step_is_left_out_where_the_method_says_so() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    clipper = Clipper.from_setting("skip_step:3", window=4)
    assert clipper.can_skip
    for gradient in (1.0, 1.1, 0.9, 50.0):
        weight.grad = torch.tensor([gradient])
        before = weight.item()
        clipper([weight])
        clipper.step(optimizer)
    assert clipper.last.skipped and clipper.last.scale == 0 and clipper.last.clipped_norm == 0
    assert weight.item() == before
    assert clipper.record().num_skipped == 1
    other = Clipper.from_setting("global_norm:1")
    weight.grad = torch.tensor([1.0])
    other.step(optimizer)
    assert weight.item() != before and not other.can_skip


def test_nothing_was_clipped_yet() -> None:
    clipper = Clipper.from_setting("global_norm:1")
    with pytest.raises(RuntimeError, match="nothing was clipped yet"):
        clipper.last  # noqa: B018
    assert (clipper.num_steps, clipper.drain_norms(), clipper.record().num_steps) == (0, [], 0)
    assert clipper.record().norms is None


def test_loss_is_one_number_and_stays_the_callers() -> None:
    weight = nn.Parameter(torch.ones(1))
    clipper = Clipper.from_setting("none")
    loss = (weight * 3).sum()
    loss.backward()
    clipper([weight], loss=loss)
    with torch.no_grad():
        loss.mul_(100)
    clipper([weight], loss=2.0)
    clipper([weight])
    record = clipper.record()
    assert record.loss is not None
    assert (record.loss.min, record.loss.last, record.loss.mean) == (2.0, 2.0, 2.5)
    with pytest.raises(ValueError, match=r"loss must be one number, got shape \(2,\)"):
        clipper([weight], loss=torch.ones(2))


@pytest.mark.parametrize(
    ("setting", "options", "error", "words"),
    [
        ("global_norm:-1", {}, SpecError, "threshold"),
        ("global_norms:1", {}, UnknownMethodError, "known methods: adagc"),
        ("autoclip:10", {"window": 0}, ValueError, "window must be finite and >= 1"),
        ("global_norm:1", {"window": 3}, TypeError, "window"),
        ("zclip:2", {"reference_norm": -1.0}, ValueError, "reference_norm must be finite and > 0"),
        ("agc:0.1", {"excluded": ["head"]}, SpecError, "excluded needs the parameters' names, which"),
        ("none", {"monitor_every": 0}, SpecError, "monitor_every must be >= 1, got 0"),
        ("none", {"run_steps": 0}, SpecError, "run_steps must be >= 1, got 0; leave it out"),
    ],
)
def test_wrong_arguments_are_refused_before_the_loop(
    setting: str, options: dict[str, float], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Clipper.from_setting(setting, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", ["global_norm:0.5", "value:0.1", "agc:0.01"])
def test_parameter_without_elements_changes_nothing(setting: str) -> None:
    whole, empty = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.zeros(0, 3))
    whole.grad, empty.grad = torch.ones(2, 3), torch.zeros(0, 3)
    alone = nn.Parameter(torch.ones(2, 3))
    alone.grad = torch.ones(2, 3)
    Clipper.from_setting(setting)([whole, empty])
    Clipper.from_setting(setting)([alone])
    assert torch.equal(whole.grad, alone.grad)
