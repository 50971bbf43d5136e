#!/bin/sh
GPT_ARGS="
    --tensor-model-parallel-size 2 \
    --num-layers 24 \
    --micro-batch-size 4 \
    --clip-grad 1.0 \
    --fp16
"
python pretrain_gpt.py $GPT_ARGS
