"""A setting in the spelling of each framework, to paste. No torch."""

from __future__ import annotations

from tuner.spec import ClipSetting


def snippets(setting: ClipSetting) -> dict[str, str]:
    """How to use a setting.

    Args:
        setting: any setting.

    Returns:
        A line per framework: ``pytorch``, ``huggingface`` (Trainer arguments), ``lightning`` (Trainer arguments). A
        framework that does not have the method is left out.

    Example:
        >>> snippets(ClipSetting(method="global_norm", threshold=0.42))["huggingface"]
        'max_grad_norm: 0.42'
    """
    threshold = f"{setting.threshold:g}" if setting.threshold is not None else ""
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
    }
    return table.get(setting.method, {})
