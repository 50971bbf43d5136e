#!/bin/bash
GPT_MODEL_ARGS=(
    --num-layers 96
    --num-attention-heads 96
)
TRAINING_ARGS=(
    --micro-batch-size 1 # per GPU; don't raise
    --clip-grad 1.0
    --lr 6.0e-5
)
torchrun pretrain_gpt.py ${GPT_MODEL_ARGS[@]} ${TRAINING_ARGS[@]} --tensor-model-parallel-size 8
