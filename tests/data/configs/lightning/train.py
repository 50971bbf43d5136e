"""Train."""

import lightning

trainer = lightning.Trainer(max_epochs=3, gradient_clip_val=0.5, gradient_clip_algorithm="value")
