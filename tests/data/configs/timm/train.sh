./distributed_train.sh 8 /imagenet --model convnext_base --opt adamw --drop-path 0.4 \
  --clip-grad 1.0 \
  --clip-mode value
