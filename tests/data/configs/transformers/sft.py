"""Fine-tune."""

from trl import SFTConfig

config = SFTConfig(
    output_dir="out",
    max_grad_norm=0.3,  # QLoRA paper
)
