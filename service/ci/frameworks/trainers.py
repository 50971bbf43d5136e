"""Libraries that own the training loop, and what configures them."""

from __future__ import annotations

from dataclasses import replace

from service.ci.framework import Framework, flags, keys
from service.ci.frameworks.places import BY_NORM, Facts, argument, flag, plain

_HF_PLACES = (
    plain("max_grad_norm", absent=1.0),
    flag("--max_grad_norm", absent=1.0),
    flag("--max-grad-norm", absent=1.0),
    *argument(
        "TrainingArguments Seq2SeqTrainingArguments SFTConfig DPOConfig GRPOConfig KTOConfig ORPOConfig RewardConfig",
        "max_grad_norm",
        absent=1.0,
    ),
)
_LIGHTNING: Facts = {"kind_keys": ("gradient_clip_algorithm",), "kinds": BY_NORM, "is_telling": True}
_LIGHTNING_PLACES = (
    plain("trainer.gradient_clip_val", **_LIGHTNING),
    plain("gradient_clip_val", **_LIGHTNING),
    flag(
        "--trainer.gradient_clip_val",
        kind_keys=("--trainer.gradient_clip_algorithm",),
        kinds=BY_NORM,
        is_telling=True,
    ),
    # A Hydra override.
    flag(
        "trainer.gradient_clip_val",
        kind_keys=("trainer.gradient_clip_algorithm",),
        kinds=BY_NORM,
        is_telling=True,
    ),
    *argument("Trainer", "gradient_clip_val", kind_keys=("gradient_clip_algorithm",), kinds=BY_NORM),
)

TRAINERS = (
    Framework(
        name="nemo",
        title="NeMo",
        places=_LIGHTNING_PLACES,
        signs=keys("exp_manager"),
        marks=keys("trainer.max_steps trainer.devices model.optim model.train_ds"),
        is_zero_off=True,
    ),
    Framework(
        name="lightning",
        title="Lightning",
        places=_LIGHTNING_PLACES,
        signs=keys("seed_everything") + flags("--trainer.max_epochs --trainer.accelerator --trainer.devices"),
        marks=keys(
            "trainer.max_epochs trainer.max_steps trainer.accelerator trainer.devices model.class_path"
        ),
        is_zero_off=True,
        note="gradient_clip_algorithm switches between norm (the default) and value",
    ),
    Framework(
        name="axolotl",
        title="axolotl",
        places=_HF_PLACES,
        signs=keys("sequence_len micro_batch_size"),
        marks=keys("base_model adapter datasets num_epochs val_set_size gradient_accumulation_steps lora_r"),
        off="zero",
        is_zero_off=True,
    ),
    Framework(
        name="llama-factory",
        title="LLaMA-Factory",
        places=_HF_PLACES,
        signs=keys("finetuning_type cutoff_len") + flags("--finetuning_type --cutoff_len"),
        marks=keys("stage template do_train dataset model_name_or_path") + flags("--stage --template"),
        off="zero",
        is_zero_off=True,
        note="becomes clip_grad in its Megatron bridge",
    ),
    Framework(
        name="transformers",
        title="Hugging Face Transformers",
        places=_HF_PLACES,
        signs=keys("per_device_train_batch_size")
        + flags("--per_device_train_batch_size --per-device-train-batch-size"),
        marks=keys(
            "output_dir num_train_epochs gradient_accumulation_steps lr_scheduler_type warmup_ratio warmup_steps"
            " save_steps logging_steps eval_strategy learning_rate model_name_or_path max_steps"
        )
        + flags("--output_dir --num_train_epochs --model_name_or_path --learning_rate --max_steps"),
        off="zero",
        is_zero_off=True,
        note="the logged grad_norm is before clipping",
    ),
    Framework(
        name="deepspeed",
        title="DeepSpeed",
        places=(replace(plain("gradient_clipping"), formats=("json", "yaml")),),
        signs=keys("zero_optimization train_micro_batch_size_per_gpu"),
        marks=keys(
            "train_batch_size fp16 bf16 gradient_accumulation_steps optimizer.type scheduler.type steps_per_print"
        ),
        file_names=("ds_*.json", "*deepspeed*.json", "zero[0-3]*.json"),
        off="zero",
        is_zero_off=True,
        note="without the key clipping is off, whatever DeepSpeed's documentation says",
    ),
    Framework(
        name="accelerate",
        title="Accelerate",
        places=(
            plain(
                "deepspeed_config.gradient_clipping",
                absent="auto",
                file_key="deepspeed_config_file",
                is_telling=True,
            ),
            plain("megatron_lm_config.megatron_lm_gradient_clipping", absent=1.0, is_telling=True),
        ),
        signs=keys("compute_environment distributed_type"),
        marks=keys("mixed_precision num_processes num_machines"),
        off="zero",
        is_zero_off=True,
    ),
    Framework(
        name="composer",
        title="Composer, llm-foundry",
        places=tuple(
            plain(
                path,
                kind_keys=("clipping_type",),
                kinds={**BY_NORM, "adaptive": "agc"},
                is_telling=True,
            )
            # Algorithms by name, or in a list.
            for path in (
                "algorithms.gradient_clipping.clipping_threshold",
                "algorithms.*.gradient_clipping.clipping_threshold",
            )
        ),
        signs=keys("max_duration device_train_microbatch_size"),
        marks=keys("train_loader eval_interval global_train_batch_size callbacks algorithms"),
        off="none",
        note="under DeepSpeed only clipping_type norm works",
    ),
)
