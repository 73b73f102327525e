"""Responses of a policy to prompts: sampled, cut where they end, read as text -> Rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.batches import PromptBatch, Rollouts
from rlhf.control_tokens import eos_id, pad_id, part
from rlhf.masked import mask_through_first
from rlhf.models.policy import Policy
from rlhf.sampling.fast import fast_sampler, unfit
from rlhf.sampling.plain import sample_plain
from rlhf.sampling.vllm import Sample
from rlhf.text import decode, stop_ids


def generate(
    models: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptBatch,
    uniforms: Tensor,
    *,
    sampling: str,
    batch_size: int,
    stop_strings: Sequence[str],
    group_size: int = 1,
    precision: str | None = None,
    as_sampled: Callable[[Tensor, list[str]], None] | None = None,
    elsewhere: Sample | None = None,
) -> Rollouts:
    """A response for every prompt; `batch_size` rows are sampled at once, which changes no draw.

    Args:
        prompts: B prompts.
        uniforms: (B, T) float64; row i belongs to prompt i.
        sampling: rollout.sampling; all but "plain" is fast, or plain for a model that fast does not fit.
        group_size: so many neighbours among the prompts are the same one, which the fast sampler reads once for all of
            them where `batch_size` cuts none of these groups.
        precision: rollout.precision.
        as_sampled: called with the rows of each batch and their texts before the next batch is sampled.
        elsewhere: what samples in place of our own, all rows at once.
    """
    eos, padding = eos_id(tokenizer), pad_id(tokenizer)
    tokens = torch.full(uniforms.shape, padding, dtype=torch.int64, device=models.device)
    logprobs = torch.zeros(uniforms.shape, device=models.device)
    lengths, ended = torch.zeros(len(uniforms), dtype=torch.int64), torch.zeros(len(uniforms), dtype=torch.bool)
    responses = [""] * len(uniforms)
    batches = by_length(prompts, batch_size if elsewhere is None else len(uniforms))
    with models.sampling(precision) as sampler:
        if elsewhere is not None:
            sample = elsewhere
        elif sampling != "plain" and not unfit(sampler.model):
            fast = fast_sampler(
                sampler,
                rows=len(batches[0]),
                prompt_width=int(prompts.mask.sum(1).max()),
                response_width=uniforms.shape[1],
                eos_id=eos,
                pad_id=padding,
            )
            together = 1 if batch_size % group_size else group_size
            sample = partial(fast.sample, group_size=together)
        else:
            sample = partial(sample_plain, sampler, eos_id=eos, pad_id=padding)
        for rows in batches:
            asked = prompts.rows(rows).trimmed()
            on_device = asked.to(models.device)
            drawn, logprobs[rows] = sample(on_device.input_ids, on_device.mask, uniforms[rows].to(models.device))
            tokens[rows] = drawn
            mask, at_eos = mask_through_first(drawn, eos)
            before = [row[valid].tolist() for row, valid in zip(asked.input_ids, asked.mask, strict=True)]
            lengths[rows], stopped, texts = read_responses(tokenizer, drawn, mask, stop_strings, before)
            ended[rows] = stopped | at_eos.cpu()
            for row, text in zip(rows.tolist(), texts, strict=True):
                responses[row] = text
            if as_sampled is not None:
                as_sampled(rows, texts)
    mask = torch.arange(tokens.shape[1], device=models.device) < lengths[:, None].to(models.device)
    return Rollouts(
        prompt_ids=prompts.input_ids.to(models.device),
        prompt_mask=prompts.mask.to(models.device),
        response_ids=torch.where(mask, tokens, padding),
        mask=mask,
        ended=ended.to(models.device),
        prompts=prompts.texts,
        references=prompts.references,
        responses=responses,
        sampler_logprobs=torch.where(mask, logprobs, 0.0),
        columns=prompts.columns,
    )


def by_length(prompts: PromptBatch, batch_size: int) -> list[Tensor]:
    """Rows in batches of neighbours in length, which need little padding; the first batch is the largest."""
    return list(prompts.mask.sum(1).cpu().argsort(stable=True).split(batch_size))


def read_responses(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Tensor,
    mask: Tensor,
    stop_strings: Sequence[str],
    before: Sequence[Sequence[int]] | None = None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Where each response ends, whether a stop string ended it, and the text to be scored.

    The token that completes a stop string still belongs to the response (dropping sampled tokens would bias every
    KL); the scored text stops before the stop string. A stop string that is a control token is known by its id. No text
    is tokenised again.

    Args:
        tokens, mask: (B, T), up to the first EOS.
        before: the tokens of the B prompts, without padding.

    Returns:
        (B,) int64 lengths, (B,) bool, B texts.
    """
    eos, stops = eos_id(tokenizer), stop_ids(tokenizer, stop_strings)
    lengths, stopped, texts = [], [], []
    prompts = [()] * len(tokens) if before is None else before
    for row, length, prompt in zip(tokens.tolist(), mask.sum(1).tolist(), prompts, strict=True):
        read = partial(decode, tokenizer, before=prompt)
        kept = row[:length]
        at = next((place for place, token in enumerate(kept) if token in stops and token != eos), None)
        if at is not None:
            kept = kept[:at]
        text = read([token for token in kept if token != eos])
        end = _first_stop(text, stop_strings)
        if end is not None:
            length = _tokens_until(read, kept, stop_strings)
            text = read(kept[:length])  # what comes later may hold an earlier start of another one
            text = part(text, 0, len(str(text)[: _first_stop(text, stop_strings)].rstrip()))
        elif at is not None:
            length = at + 1
        lengths.append(length)
        stopped.append(end is not None or at is not None)
        texts.append(text)
    return torch.tensor(lengths), torch.tensor(stopped, dtype=torch.bool), texts


def _first_stop(text: str, stop_strings: Sequence[str]) -> int | None:
    return min((text.find(stop) for stop in stop_strings if stop in text), default=None)


def _tokens_until(read: Callable[[list[int]], str], tokens: list[int], stop_strings: Sequence[str]) -> int:
    """Fewest leading tokens whose text holds a stop string (it stays in, once there: bisection)."""
    low, high = 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if _first_stop(read(tokens[:middle]), stop_strings) is None:
            low = middle + 1
        else:
            high = middle
    return low
