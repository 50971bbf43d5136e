"""Optimizer."""

import optax

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
