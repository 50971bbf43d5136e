#!/bin/bash
#SBATCH --gpus=8
srun python main.py fit --config base.yaml \
    --trainer.max_epochs=20 --trainer.gradient_clip_val=1.0 --trainer.devices 8
