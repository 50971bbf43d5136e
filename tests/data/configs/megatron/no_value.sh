python pretrain_gpt.py --tensor-model-parallel-size 2 --num-layers 24 --clip-grad --fp16
