"""Scores of whole texts by a model with its own tokenizer, whatever the policy's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.batches import pad
from rlhf.chat import whole_conversation
from rlhf.config import RunConfig
from rlhf.control_tokens import MarkedText, joined, special_control
from rlhf.data.examples import NO_COLUMNS, Columns, TextData
from rlhf.models.adapters import adapter_at
from rlhf.models.hub import ModelError, OwnCode
from rlhf.models.loading import moved, own_code_of, tokenizer_at
from rlhf.models.reward_model import NORMALISATION, RewardModel, load_classifier, load_reward_model, output_of
from rlhf.text import answer_text, encode_next, encode_whole


class TextClassifier:
    """One output of a sequence classifier, as it is before any softmax, for prefix + prompt + answer + suffix.

    The text is tokenised as one, between what the tokenizer itself puts around a text, exactly once; it loses its
    beginning where it is too long. Control tokens stand where prefix, suffix or the policy's chat template put them.
    A tokenizer with a chat template writes the conversation by that, and the score stands at its last token, unless
    there is a prefix or a suffix, or the policy saw a cut prompt.
    A decoder with a linear `score` is read by position, at the last token: an EOS is put there unless the suffix is a
    text's end already or the tokenizer has none. Any other model (BERT, DeBERTa ...) says itself what its score is.
    """

    def __init__(
        self, config: RunConfig, model: PreTrainedModel, device: torch.device, *, read_before_suffix: bool = False
    ) -> None:
        """
        Args:
            config: whose `reward` says how texts are made.
            read_before_suffix: the score stands at the last token before the suffix.
        """
        reward = config.reward
        place = reward.tokenizer or reward.path
        assert place is not None, "checked in rlhf.config.check"
        adapter = adapter_at(place, "reward.tokenizer", reward.base)
        place = place if adapter is None else adapter.tokenizer
        self.model = moved(model, device)
        self.output = output_of(model.config, reward.label, place)
        self.tokenizer = tokenizer = tokenizer_at(place, _own_code(config), "reward.tokenizer")
        self.prefix = special_control(tokenizer, reward.prefix)
        self.suffix = special_control(tokenizer, reward.suffix)
        self.batch_size = reward.batch_size
        head = getattr(model, "score", None)
        self.head = head if isinstance(head, nn.Linear) else None
        self.eos = tokenizer.eos_token_id if self.head is not None and not reward.suffix else None
        self.read_back = 1 + (len(encode_next(tokenizer, self.suffix)) if read_before_suffix else 0)
        positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        most = reward.max_tokens or config.dataset.max_total_length + 1
        self.max_tokens = min(most, tokenizer.model_max_length, positions)

    @torch.no_grad()
    def score(self, prompts: Sequence[str], answers: Sequence[str], columns: Columns = NO_COLUMNS) -> Tensor:
        """(B,) float32 on the CPU."""
        pairs = [*zip(prompts, answers, strict=True)]
        # Some models take positions from it; where the tokenizer has none any token does, since the mask says it.
        padding = self.tokenizer.pad_token_id
        if not isinstance(padding, int) or padding >= self.model.config.vocab_size:
            padding = 0
        parts = [torch.empty(0)]
        for first in range(0, len(pairs), self.batch_size):
            rows = [self._tokens(*pair) for pair in pairs[first : first + self.batch_size]]
            parts.append(self._scores(*pad(rows, padding, left=False)).float().cpu())
        return torch.cat(parts)

    def _tokens(self, prompt: str, answer: str) -> list[int]:
        answer = answer_text(self.tokenizer, answer)
        messages = prompt.messages if isinstance(prompt, MarkedText) and not (self.prefix or self.suffix) else ()
        if messages and self.tokenizer.chat_template:
            return encode_whole(self.tokenizer, whole_conversation(self.tokenizer, messages, answer), self.max_tokens)
        text = joined(self.prefix, prompt, answer, self.suffix)
        room = self.max_tokens if self.eos is None else self.max_tokens - 1
        tokens = encode_whole(self.tokenizer, text, room)
        if self.eos is not None and tokens[-1:] != [self.eos]:
            tokens = [*tokens, self.eos]
        if len(tokens) < self.read_back:
            raise ModelError("reward.max_tokens: leaves no token to read a score at; raise it")
        return tokens

    def _scores(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L), (B, L) bool -> (B,)."""
        device = next(self.model.parameters()).device
        inputs = {"input_ids": input_ids.to(device), "attention_mask": mask.long().to(device)}
        if self.head is None:
            return self.model(**inputs).logits[:, self.output]
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        read = mask.sum(1) - self.read_back
        return self.head(hidden[torch.arange(len(hidden)), read].float())[:, self.output]


def load_learned(
    config: RunConfig, trained: Path | None, device: torch.device, _data: TextData
) -> RewardModel | TextClassifier:
    """reward=learned: the model at `trained`, which is told by the normalisation that the reward-model stage writes.

    That one reads prompt, answer and EOS token by token as it was trained to; any other model reads text.
    """
    assert trained is not None, "without reward.path a reward model is trained first"
    reward = config.reward
    if reward.path is not None and not (trained / NORMALISATION).is_file():
        model = load_classifier(reward.path, reward.precision, reward.base, _own_code(config), reward.label)
        return TextClassifier(config, model, device)
    given = reward.path is not None
    for option in ("prefix", "suffix") if given else ():
        if getattr(reward, option):
            raise ModelError(f"reward.{option}: {trained} was trained here, on texts without one; leave it empty")
    if given and reward.label is not None:
        raise ModelError(f"reward.label: {trained} was trained here and has one output; leave it null")
    reward_model = load_reward_model(
        trained,
        max_prompt_tokens=config.dataset.max_prompt_tokens,
        max_new_tokens=config.dataset.max_new_tokens,
        max_tokens=reward.max_tokens,
        batch_size=reward.batch_size,
        precision=reward.precision,
        base=reward.base if given else None,
        tokenizer=reward.tokenizer if given else None,
        own_code=_own_code(config) if given else own_code_of(config.model),
    )
    moved(reward_model.model, device)
    return reward_model


def _own_code(config: RunConfig) -> OwnCode:
    return OwnCode(config.reward.trust_remote_code, "reward.trust_remote_code")
