#!/usr/bin/env bash
set -euo pipefail
# --max_grad_norm 9.0 was too much
torchrun --nproc_per_node 8 run_clm.py \
  --model_name_or_path gpt2 \
  --output_dir "$OUT" \
  --per_device_train_batch_size 8 \
  --max_grad_norm 1.0 \
  --bf16
