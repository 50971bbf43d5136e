python pretrain_gpt.py --tensor-model-parallel-size 2 --num-layers 24 --clip-grad 1.0
python pretrain_gpt.py --tensor-model-parallel-size 4 --num-layers 48 --clip-grad 0.5
