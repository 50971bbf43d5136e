python train.py --clip-grad 1.0 --lr 0.1
