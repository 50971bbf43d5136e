"""Repositories that train language models."""

from __future__ import annotations

from service.ci.framework import Framework, flags, keys
from service.ci.frameworks.places import argument, assigned, flag, plain

LANGUAGE = (
    Framework(
        name="torchtune",
        title="torchtune",
        places=(plain("clip_grad_norm"), plain("*.clip_grad_norm")),
        signs=keys("tokenizer._component_ model._component_"),
        marks=keys("optimizer._component_ checkpointer._component_ loss._component_ dataset._component_"),
    ),
    Framework(
        name="torchtitan",
        title="torchtitan",
        places=(
            plain("training.max_norm", absent=1.0),
            flag("--training.max_norm", absent=1.0, is_telling=True),
            *argument("TrainingConfig", "max_norm", absent=1.0, flag="--training.max_norm"),
        ),
        signs=keys("job.dump_folder model.flavor")
        + flags("--job.config_file --job.config-file --model.flavor"),
        marks=keys("training.seq_len training.steps parallelism optimizer.lr metrics.log_freq")
        + flags("--training.steps --training.seq_len --module --config"),
        off="inf",
        note="releases of 2026 read no TOML: pass --training.max_norm",
    ),
    Framework(
        name="megatron",
        title="Megatron-LM",
        places=(flag("--clip-grad", absent=1.0),),
        signs=flags("--tensor-model-parallel-size --micro-batch-size --num-attention-heads"),
        marks=flags(
            "--num-layers --hidden-size --global-batch-size --train-iters --seq-length --lr-decay-iters"
        ),
        off="zero",
        is_zero_off=True,
    ),
    Framework(
        name="olmo-core",
        title="OLMo-core",
        places=(
            plain("train_module.max_grad_norm", is_telling=True),
            *argument("TransformerTrainModuleConfig", "max_grad_norm"),
        ),
        marks=keys(
            "train_module.optim train_module.rank_microbatch_size data_loader.global_batch_size trainer"
        ),
    ),
    Framework(
        name="fairseq",
        title="fairseq",
        places=(
            plain("optimization.clip_norm", is_telling=True),
            flag("--clip-norm", is_telling=True),
            flag("optimization.clip_norm", is_telling=True),
        ),
        signs=keys("optimization.max_update") + flags("--max-tokens --arch"),
        marks=keys("task criterion lr_scheduler distributed_training checkpoint")
        + flags("--criterion --lr-scheduler"),
        off="zero",
        is_zero_off=True,
    ),
    Framework(
        name="nanogpt",
        title="nanoGPT",
        places=(assigned("grad_clip", absent=1.0),),
        signs=keys("block_size lr_decay_iters"),
        marks=keys(
            "n_layer n_head n_embd max_iters out_dir learning_rate gradient_accumulation_steps eval_interval"
        ),
        off="zero",
        is_zero_off=True,
    ),
)
