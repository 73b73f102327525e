"""TRL 1.12.0's PPO trainer on our networks, prompts and number of optimizer steps, timed iteration by iteration."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging

from rlhf.config import RunConfig
from rlhf.models.modes import split, top_parameters
from tests.benchmarks.measuring import watching_collections


def need_trl() -> None:
    """Leave with one line where TRL's PPO trainer is not there."""
    warnings.simplefilter("ignore")  # that it is experimental, and what it says of its own calls
    logging.set_verbosity_error()
    try:
        from trl.experimental.ppo import PPOTrainer  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        sys.exit("TRL 1.12.0 is not installed: pip install -e '.[benchmarks]', or leave it out with --no-trl")


@dataclass
class _Clock(TrainerCallback):
    """An iteration is what lies between two ends of a step, but for what `between` does there."""

    between: Callable[[], object]
    collected: Callable[[], float]
    seconds: list[float] = field(default_factory=list)
    collecting: list[float] = field(default_factory=list)
    began: float = 0.0

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.collected()
        self.began = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        self.collecting.append(self.collected())
        self.between()
        self.on_train_begin()


def run_trl(
    config: RunConfig,
    model: PreTrainedModel,
    reward: PreTrainedModel,
    value: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    iterations: int,
    between: Callable[[], object],
) -> tuple[list[float], list[float]]:
    """Seconds of each iteration after the first, and what of them garbage collection took; takes the networks.

    Args:
        between: called after each iteration, outside of what is timed.
    """
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]

    settings, responses = config.optimization, config.rollout.num_responses
    reference = copy.deepcopy(model)
    if config.model.train.mode == "last_k":
        _freeze_below(model, config.model.train.last_k)
        _freeze_below(value, config.model.train.last_k)
    with tempfile.TemporaryDirectory() as folder, watching_collections() as collected:
        clock = _Clock(between, collected)
        arguments = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=responses,
            num_mini_batches=responses // settings.minibatch_size,
            gradient_accumulation_steps=1,
            num_ppo_epochs=settings.epochs,
            total_episodes=iterations * responses,
            local_rollout_forward_batch_size=responses,
            response_length=config.dataset.max_new_tokens,
            temperature=config.rollout.temperature,
            learning_rate=settings.learning_rate,
            vf_coef=config.value.coef,
            lr_scheduler_type="constant",
            num_sample_generations=0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            eval_strategy="no",
            disable_tqdm=True,
        )
        trainer: Any = PPOTrainer(
            args=arguments,
            processing_class=tokenizer,
            model=model,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            eval_dataset=Dataset.from_dict({"input_ids": prompts[:1]}),
            callbacks=[clock],  # type: ignore[list-item]
        )
        trainer.remove_callback(PrinterCallback)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    return clock.seconds[1:], clock.collecting[1:]


def _freeze_below(model: PreTrainedModel, last_k: int) -> None:
    """What our mode last_k trains, trained alone: the last blocks, the final norm, a value network's score."""
    model.requires_grad_(False)
    score = getattr(model, "score", None)
    trained = [*top_parameters(split(model.base_model, last_k)[1]), *(score.parameters() if score is not None else ())]
    for parameter in trained:
        parameter.requires_grad_(True)


def describe(config: RunConfig, model: PreTrainedModel) -> str:
    """The sizes of a comparison, in one line."""
    base, sizes = model.config, config.dataset
    parameters = sum(one.numel() for one in model.parameters())
    return (
        f"{config.rollout.num_responses} responses of {sizes.max_prompt_tokens} + {sizes.max_new_tokens} tokens, "
        f"{config.optimization.epochs} epochs; {type(model).__name__}, {parameters / 1e6:,.2f}M parameters, "
        f"{base.num_hidden_layers} blocks of width {base.hidden_size}, vocabulary {base.vocab_size}"
    )
