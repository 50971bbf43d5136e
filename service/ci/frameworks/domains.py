"""Repositories for vision, speech and reinforcement learning, and Keras."""

from __future__ import annotations

from service.ci.framework import Framework, Kind, flags, keys
from service.ci.frameworks.places import BY_CLIP_MODE, BY_ORDER, argument, assigned, flag, plain

_KERAS_PREFIXES = ("config", "optimizer.config", "compile_config.optimizer.config", "optimizer")
_KERAS_KEYS: dict[str, Kind] = {"global_clipnorm": "norm", "clipnorm": "per_tensor", "clipvalue": "value"}

DOMAINS = (
    Framework(
        name="timm",
        title="timm",
        places=(
            plain("clip_grad", kind_keys=("clip_mode",), kinds=BY_CLIP_MODE),
            flag("--clip-grad", kind_keys=("--clip-mode",), kinds=BY_CLIP_MODE),
        ),
        signs=keys("clip_mode drop_path reprob model_ema")
        + flags("--clip-mode --drop-path --reprob --model-ema"),
        marks=keys("opt sched aa smoothing warmup_lr")
        + flags("--opt --sched --aa --smoothing --warmup-lr --model"),
        file_names=("args.yaml",),
        note="zero is not off: it scales every gradient to nothing",
    ),
    Framework(
        name="torchvision",
        title="torchvision references",
        places=(flag("--clip-grad-norm", is_telling=True),),
        marks=flags("--lr-warmup-epochs --auto-augment --norm-weight-decay --lr-scheduler"),
        note="zero is not off: it scales every gradient to nothing",
    ),
    Framework(
        name="keras",
        title="Keras",
        places=(
            *(
                plain(f"{prefix}.{key}", kind=kind, is_telling=True)
                for key, kind in _KERAS_KEYS.items()
                for prefix in _KERAS_PREFIXES
            ),
            *(
                place
                for key, kind in _KERAS_KEYS.items()
                for place in argument(
                    "Adam AdamW SGD RMSprop Adagrad Adadelta Adamax Nadam Lion Lamb Muon Ftrl Adafactor",
                    key,
                    kind=kind,
                )
            ),
        ),
        signs=keys("config.learning_rate optimizer.config.learning_rate compile_config.optimizer"),
        marks=keys("class_name optimizer.class_name"),
        is_zero_off=True,
        is_exclusive=True,
        note="clipnorm limits each variable on its own; only one of the three keys may be set",
    ),
    Framework(
        name="mmengine",
        title="MMEngine",
        places=(
            assigned(
                "optim_wrapper.clip_grad.max_norm", kind_keys=("norm_type",), kinds=BY_ORDER, is_telling=True
            ),
            assigned("optim_wrapper.clip_grad.clip_value", kind="value", is_telling=True),
        ),
        signs=keys("optim_wrapper"),
        marks=keys("default_hooks train_dataloader train_cfg param_scheduler"),
        off="none",
    ),
    Framework(
        name="detectron2",
        title="Detectron2",
        places=(
            plain(
                "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
                kind="value",
                kind_keys=("CLIP_TYPE",),
                kinds={"value": "value", "norm": "per_tensor", "full_model": "norm"},
                absent=1.0,
                switch_key="ENABLED",
                is_telling=True,
            ),
        ),
        signs=keys("SOLVER.BASE_LR MODEL.META_ARCHITECTURE"),
        marks=keys("_BASE_ SOLVER.IMS_PER_BATCH SOLVER.MAX_ITER DATASETS.TRAIN"),
        off="switch",
        note="CLIP_TYPE norm limits each parameter on its own",
    ),
    Framework(
        name="sb3",
        title="Stable-Baselines3",
        places=(
            *(
                plain(path, absent=0.5, absent_by_name={"*dqn.y*ml": 10.0, "dqn*.y*ml": 10.0})
                for path in ("*.max_grad_norm", "max_grad_norm")
            ),
            *argument("PPO A2C RecurrentPPO MaskablePPO", "max_grad_norm", absent=0.5),
            *argument("DQN QRDQN", "max_grad_norm", absent=10.0),
        ),
        signs=keys("*.policy policy"),
        marks=keys(
            "*.n_timesteps *.n_steps *.gae_lambda *.batch_size n_timesteps n_steps gae_lambda buffer_size"
        ),
        file_names=("ppo.y*ml", "a2c.y*ml", "dqn.y*ml", "ppo_lstm.y*ml"),
        off="none",
    ),
    Framework(
        name="rllib",
        title="RLlib",
        places=(
            plain(
                "*.config.grad_clip",
                kind_keys=("grad_clip_by",),
                kinds={"global_norm": "norm", "norm": "per_tensor", "value": "value"},
                is_telling=True,
            ),
            *argument(
                "training",
                "grad_clip",
                kind_keys=("grad_clip_by",),
                kinds={"global_norm": "norm", "norm": "per_tensor", "value": "value"},
            ),
        ),
        signs=keys("*.run *.config.train_batch_size"),
        marks=keys("*.env *.stop *.config.framework *.config.lr"),
    ),
    Framework(
        name="espnet",
        title="ESPnet",
        places=(plain("grad_clip", kind_keys=("grad_clip_type",), kinds=BY_ORDER, absent=5.0),),
        signs=keys("optim_conf encoder_conf"),
        marks=keys(
            "optim scheduler scheduler_conf encoder decoder model_conf batch_bins accum_grad max_epoch"
        ),
        off="none",
    ),
    Framework(
        name="speechbrain",
        title="SpeechBrain",
        places=(plain("max_grad_norm", absent=5.0),),
        signs=keys("opt_class epoch_counter"),
        marks=keys("modules checkpointer number_of_epochs output_folder save_folder lr_annealing"),
        off="zero",
        is_zero_off=True,
    ),
)
