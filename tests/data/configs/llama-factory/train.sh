llamafactory-cli train --stage sft --finetuning_type lora --template qwen \
  --per_device_train_batch_size 1 --output_dir saves --max_grad_norm='1.0'
