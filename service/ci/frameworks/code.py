"""Calls in a loop of one's own."""

from __future__ import annotations

from service.ci.framework import Framework, keys
from service.ci.frameworks.places import BY_ORDER, argument, flag, plain

CODE = (
    Framework(
        name="pytorch",
        title="PyTorch",
        places=(
            *(
                place
                for name in ("1", "max_norm")
                for place in argument("clip_grad_norm_", name, kind_keys=("2", "norm_type"), kinds=BY_ORDER)
            ),
            *argument("clip_grad_value_", "1", kind="value"),
            *argument("clip_grad_value_", "clip_value", kind="value"),
        ),
        off="none",
    ),
    Framework(
        name="fabric",
        title="Lightning Fabric",
        places=(
            *argument("clip_gradients", "max_norm", kind_keys=("norm_type",), kinds=BY_ORDER),
            *argument("clip_gradients", "clip_val", kind="value"),
        ),
        off="none",
    ),
    Framework(
        name="optax",
        title="optax",
        places=(
            *argument("clip_by_global_norm", "0"),
            *argument("optax.clip", "0", kind="value"),
            *argument("adaptive_grad_clip", "0", kind="agc"),
        ),
        off="none",
    ),
    Framework(
        name="opacus",
        title="Opacus",
        places=(
            plain("max_grad_norm"),
            *argument("make_private make_private_with_epsilon", "max_grad_norm"),
            flag("--max-per-sample-grad_norm", is_telling=True),
        ),
        signs=keys("noise_multiplier target_epsilon target_delta"),
        refusal="Opacus clips the gradient of each sample for privacy: no clip setting of a training is that number",
    ),
)
