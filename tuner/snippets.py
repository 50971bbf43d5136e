"""A setting in the spelling of each framework, to paste. No torch."""

from __future__ import annotations

from tuner.spec import ClipSetting

#: Methods of which PyTorch has no function: our own clipper is the spelling.
_OWN = ("per_tensor_norm", "agc", "autoclip", "zclip", "adagc", "norm_growth", "quantile", "skip_step")


def snippets(setting: ClipSetting, *, reference_norm: float | None = None) -> dict[str, str]:
    """How to use a setting.

    Args:
        setting: any setting.
        reference_norm: median gradient norm that the probe measured, which a method with constants of that scale was
            trained with; None for each paper's own constants.

    Returns:
        Code per framework: ``pytorch``, ``huggingface`` (Trainer arguments), ``lightning`` (Trainer arguments),
        ``timm``, or ``tuner`` (our own clipper, made before the loop and called in each step). A framework that does
        not have the method is left out.

    Example:
        >>> snippets(ClipSetting(method="global_norm", threshold=0.42))["huggingface"]
        'max_grad_norm: 0.42'
        >>> print(snippets(ClipSetting(method="zclip", threshold=2.5), reference_norm=3.0)["tuner"])
        from tuner.clippers.plain import PlainClipper
        clipper = PlainClipper("zclip:2.5", model, reference_norm=3)
        # In each step, between loss.backward() and optimizer.step():
        result = clipper.clip(loss)
    """
    threshold = _spelled(setting.threshold) if setting.threshold is not None else ""
    table = {
        "none": {
            "pytorch": "# no clipping: leave out clip_grad_norm_ and clip_grad_value_",
            "huggingface": "max_grad_norm: 0",
            "lightning": "gradient_clip_val: null",
        },
        "global_norm": {
            "pytorch": f"torch.nn.utils.clip_grad_norm_(model.parameters(), {threshold})",
            "huggingface": f"max_grad_norm: {threshold}",
            "lightning": f"gradient_clip_val: {threshold}",
        },
        "global_norm_inf": {
            "pytorch": (
                f'torch.nn.utils.clip_grad_norm_(model.parameters(), {threshold}, norm_type=float("inf"))'
            ),
        },
        "value": {
            "pytorch": f"torch.nn.utils.clip_grad_value_(model.parameters(), {threshold})",
            "lightning": f"gradient_clip_val: {threshold}, gradient_clip_algorithm: value",
        },
        "per_tensor_norm": {
            "pytorch": (
                "for each in model.parameters(): torch.nn.utils.clip_grad_norm_("
                f"each, {threshold} / len(list(model.parameters())) ** 0.5)"
            ),
        },
        "agc": {
            "timm": f"timm.utils.agc.adaptive_clip_grad(model.parameters(), clip_factor={threshold})",
        },
    }
    found = table.get(setting.method, {})
    return {**found, "tuner": _own(setting, threshold, reference_norm)} if setting.method in _OWN else found


def _own(setting: ClipSetting, threshold: str, reference_norm: float | None) -> str:
    """Our own clipper, made once and called in each step."""
    given = "" if reference_norm is None else f", reference_norm={_spelled(reference_norm)}"
    call = "result = clipper.clip(loss)"
    if setting.method == "skip_step":
        call += "\nif not result.skipped:\n    optimizer.step()"
    where = "in place of" if setting.method == "skip_step" else "between loss.backward() and"
    return (
        "from tuner.clippers.plain import PlainClipper\n"
        f'clipper = PlainClipper("{setting.method}:{threshold}", model{given})\n'
        f"# In each step, {where} optimizer.step():\n"
        f"{call}"
    )


def _spelled(value: float) -> str:
    return f"{value:.12g}"
