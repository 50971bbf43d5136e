torchrun --nproc_per_node=8 train.py --model vit_b_16 --epochs 300 --clip-grad-norm "1" --lr-warmup-epochs 30
