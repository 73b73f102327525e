"""Losses and advantages against TRL's own functions on the same numbers: its trainers' methods, run on a stand-in for
the trainer that has the settings and hands over the logprobs."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from rlhf.batches import Totals, TrainingBatch
from tests.algorithms.made_up import Numbers, algorithm, loss_of, numbers, settings

pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[benchmarks]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CLOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-9}
REDUCTIONS = {"grpo": "response", "bnpo": "token", "dapo": "token", "dr_grpo": "sum"}
"""By TRL's name of the loss."""
SEEDS = pytest.mark.parametrize("seed", [0, 1])


def trainer(**attributes: Any) -> MagicMock:
    """What a TRL trainer's methods ask of it in one process."""
    made = MagicMock(aux_loss_enabled=False, current_gradient_accumulation_steps=1, **attributes)
    for name in ("gather", "gather_for_metrics"):
        setattr(made.accelerator, name, lambda tensor: tensor)
    made.accelerator.reduce = lambda tensor, **_: tensor
    made.accelerator.num_processes, made.accelerator.process_index = 1, 0
    made.accelerator.device = torch.device("cpu")
    return made


def advantages_of(kind: Any, made: Numbers, *, group_size: int, beta: float, **attributes: Any) -> Tensor:
    """Those that the trainer estimates of responses whose scores and logprobs these are: (B,)."""
    tokens = [[1] * int(length) for length in made.mask.sum(1)]
    stand_in = trainer(
        beta=beta,
        num_generations=group_size,
        mask_truncated_completions=False,
        pad_to_multiple_of=None,
        reward_clip_range=None,
        reward_weights=torch.ones(1, dtype=torch.float64),
        reward_func_names=["score"],
        environment_factories=None,
        environments=None,
        tools=None,
        use_vllm=False,
        num_iterations=1,
        args=MagicMock(steps_per_generation=1, gradient_accumulation_steps=1),
        **attributes,
    )
    stand_in._tokenizer.pad_token_id = 0
    prompts: list[list[int]] = [[1]] * len(tokens)
    # Prompts, responses and texts; GRPO's has masks of tools, the sampler's logprobs, further columns and images too.
    grpo = prompts, tokens, None, tokens, None, {}, None, None
    stand_in._generate.return_value = grpo if kind.__name__ == "GRPOTrainer" else (prompts, tokens, tokens)
    stand_in._get_per_token_logps_and_entropies.side_effect = [(made.old, None, None), (made.reference, None, None)]
    stand_in._calculate_rewards.return_value = made.rewards.sum(1)[:, None]
    return kind._generate_and_score_completions(stand_in, [{"prompt": ""} for _ in tokens])["advantages"]


def loss_and_gradient(kind: Any, made: Numbers, advantages: Tensor, **attributes: Any) -> tuple[Tensor, Tensor]:
    """The trainer's loss of these responses, and its gradient in the fresh logprobs (B, T)."""
    new, old = made.new.clone().requires_grad_(), torch.where(made.mask, made.old, 0.0)
    stand_in = trainer(
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        **attributes,
    )
    stand_in._get_per_token_logps_and_entropies.return_value = new, torch.zeros_like(new), None
    inputs = {
        "prompt_ids": made.mask[:, :0].long(),
        "prompt_mask": made.mask[:, :0].long(),
        "completion_ids": made.mask.long(),
        "completion_mask": made.mask.long(),
        "advantages": advantages,
        "old_per_token_logps": made.old,
        "old_logps": old.sum(1),
        "ref_per_token_logps": made.reference,
        "num_items_in_batch": made.mask.sum(),
    }
    loss = kind._compute_loss(stand_in, stand_in.model, inputs)
    return loss.detach(), torch.autograd.grad(loss, new)[0]


def ours(name: str, made: Numbers, batch: TrainingBatch, **changes: Any) -> tuple[Tensor, Tensor]:
    new = made.new.clone().requires_grad_()
    loss = loss_of(algorithm(name, **changes), batch, new).loss
    return loss.detach(), torch.autograd.grad(loss, new)[0]


def far(seed: int) -> Numbers:
    """Ratios on both sides of the clip."""
    made = numbers(seed)
    return dataclasses.replace(made, new=torch.where(made.mask, made.old + 6 * (made.new - made.old), 0.0))


@SEEDS
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_rloo(seed: int, beta: float) -> None:
    from trl import RLOOTrainer  # pyright: ignore[reportMissingImports]

    made, algo = far(seed), algorithm("rloo", group_size=4)
    penalty = beta * torch.where(made.mask, made.old - made.reference, 0.0)
    batch = dataclasses.replace(made, rewards=made.rewards - penalty).batch(algo)
    assert batch.advantages is not None
    theirs = advantages_of(RLOOTrainer, made, group_size=4, beta=beta, normalize_advantages=False)
    torch.testing.assert_close(batch.advantages, theirs, **CLOSE)
    expected = loss_and_gradient(RLOOTrainer, made, theirs, epsilon_low=0.2, epsilon_high=0.2)
    for found, wanted in zip(ours("rloo", made, batch, group_size=4), expected, strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)


@SEEDS
@pytest.mark.parametrize("std", ["group", "batch", "none"])
@pytest.mark.parametrize("loss_type", list(REDUCTIONS))
def test_grpo(seed: int, std: str, loss_type: str) -> None:
    from trl import GRPOTrainer  # pyright: ignore[reportMissingImports]

    made, kl = far(seed), dataclasses.replace(settings("grpo").kl, coef=0.3)  # type: ignore[attr-defined]
    changes: dict[str, Any] = {"std": std, "reduction": REDUCTIONS[loss_type], "kl": kl, "ratio_clip_high": 0.28}
    batch = made.batch(algorithm("grpo", **changes))
    assert batch.advantages is not None
    theirs = advantages_of(
        GRPOTrainer, made, group_size=4, beta=0.0, scale_rewards=std, multi_objective_aggregation="sum_then_normalize"
    )
    torch.testing.assert_close(batch.advantages, theirs, **CLOSE)
    expected = loss_and_gradient(
        GRPOTrainer,
        made,
        theirs,
        beta=0.3,
        epsilon_low=0.2,
        epsilon_high=0.28,
        loss_type=loss_type,
        importance_sampling_level="token",
        max_completion_length=5,
        args=MagicMock(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
    )
    constant = 5.0 if loss_type == "dr_grpo" else 1.0  # max_length
    for found, wanted in zip(ours("grpo", made, batch, **changes), expected, strict=True):
        torch.testing.assert_close(found / constant, wanted, **CLOSE)


@SEEDS
@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_dpo_and_ipo(seed: int, name: str) -> None:
    """Four pairs. IPO's sums are TRL's means over a response's tokens: at three tokens each, a third of tau, and the
    square is nine times as large."""
    from trl import DPOTrainer  # pyright: ignore[reportMissingImports]

    draws = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([3, 1, 2, 4, 4, 2, 1, 3]) if name == "dpo" else torch.full((8,), 3)
    mask = torch.arange(4) < lengths[:, None]
    tokens = torch.randint(0, 9, (8, 6), generator=draws)  # two of the prompt
    policy, reference = (torch.randn(8, 6, 9, generator=draws, dtype=torch.float64) for _ in range(2))
    policy.requires_grad_()
    completion = torch.cat([torch.zeros(8, 2, dtype=torch.bool), mask], 1).long()
    stand_in = trainer(
        beta=0.7,
        loss_types=["sigmoid" if name == "dpo" else "ipo"],
        loss_weights=[1.0],
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        _total_train_tokens=0,
    )
    stand_in.ref_model.return_value.logits = reference
    model = MagicMock()
    model.return_value.logits = policy
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "completion_mask": completion}
    theirs = DPOTrainer._compute_loss(stand_in, model, inputs, False)

    pairs = torch.arange(8).view(2, 4).T.flatten()  # chosen and rejected beside each other

    def logprobs(logits: Tensor) -> Tensor:
        picked = logits.log_softmax(-1)[:, 1:-1].gather(-1, tokens[:, 2:, None]).squeeze(-1)
        return torch.where(mask, picked, 0.0)[pairs]

    algo = algorithm(name, lam=0.7 if name == "dpo" else 0.7 / 3)
    zero = torch.zeros(8, 4, dtype=torch.float64)
    batch = TrainingBatch(
        torch.arange(8), mask[pairs], zero, logprobs(reference), **vars(algo.signal(zero, None, mask))
    )
    found = algo.loss(batch, logprobs(policy), Totals(mask.sum(), 8)).loss / (1 if name == "dpo" else 9)
    torch.testing.assert_close(found, theirs, **CLOSE)
    for ours_, theirs_ in zip(*(torch.autograd.grad(loss, policy) for loss in (found, theirs)), strict=True):
        torch.testing.assert_close(ours_, theirs_, **CLOSE)


@SEEDS
def test_a_star_po(seed: int) -> None:
    from trl.experimental.a2po import A2POTrainer  # pyright: ignore[reportMissingImports]

    made, draws = far(seed), torch.Generator().manual_seed(seed)
    references = torch.randn(8, 5, generator=draws, dtype=torch.float64)
    batch = made.batch(algorithm("a_star_po", lam=0.7), references=references)
    new = made.new.clone().requires_grad_()
    stand_in = trainer(args=MagicMock(beta2=0.7))
    stand_in._get_sequence_logps.return_value = torch.where(made.mask, new, 0.0).sum(1)
    inputs = {
        **dict.fromkeys(("input_ids", "attention_mask", "logits_to_keep")),
        "ref_logps": torch.where(made.mask, made.reference, 0.0).sum(1),
        "rewards": made.rewards.sum(1),
        "v_star": 0.5 * (references / 0.5).exp().mean(1).log(),
    }
    theirs = A2POTrainer.compute_loss(stand_in, stand_in.model, inputs)
    expected = theirs.detach(), torch.autograd.grad(theirs, new)[0]
    for found, wanted in zip(ours("a_star_po", made, batch, lam=0.7), expected, strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)
