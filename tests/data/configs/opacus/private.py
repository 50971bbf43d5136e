"""Private training."""

from opacus import PrivacyEngine

model = PrivacyEngine().make_private(noise_multiplier=1.1, max_grad_norm=1.0)
