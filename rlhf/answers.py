"""A data set's own answers as Rollouts, and their scores: computed once for all runs of a sweep, kept in the cache."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.batches import Rollouts, pad
from rlhf.config import RunConfig
from rlhf.config.identity import REVISION, fingerprint, read_by_stage
from rlhf.control_tokens import pad_id
from rlhf.data.examples import Demonstration, Preference
from rlhf.data.tokenize import encode_prompts
from rlhf.distributed import asked_to_stop, on_first_rank
from rlhf.errors import reason
from rlhf.files import file_errors, flush_to_disk, write_whole
from rlhf.terminal import say
from rlhf.text import answer_text, decode, encode_answer
from rlhf.urls import address
from rlhf.waiting import Interrupted, locked

CHUNK = 256
"""Answers scored between two writes: what an interruption can lose."""


@dataclass(frozen=True)
class Answers:
    """Every prompt of the pairs with its chosen answer (even rows) and its rejected one (odd rows)."""

    tokenizer: PreTrainedTokenizerBase
    pairs: Sequence[Preference]
    max_prompt_tokens: int
    max_new_tokens: int

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def rows(self, index: Tensor) -> Rollouts:
        """The answers that `index` (an int64 vector) names, in its order, as if they had been sampled.

        An answer of more than max_new_tokens is cut, tokens and scored text alike, and has not ended.
        """
        examples = [self._example(number) for number in index.tolist()]
        prompts = encode_prompts(self.tokenizer, examples, self.max_prompt_tokens)
        tokens = [encode_answer(self.tokenizer, example.response) for example in examples]
        ended = [len(row) <= self.max_new_tokens for row in tokens]
        tokens = [row[: self.max_new_tokens] for row in tokens]
        prompt_tokens = [ids[mask].tolist() for ids, mask in zip(prompts.input_ids, prompts.mask, strict=True)]
        response_ids, mask = pad(tokens, pad_id(self.tokenizer), left=False)
        return Rollouts(
            prompt_ids=prompts.input_ids,
            prompt_mask=prompts.mask,
            response_ids=response_ids,
            mask=mask,
            ended=torch.tensor(ended),
            prompts=prompts.texts,
            references=[""] * len(examples),
            responses=[
                answer_text(self.tokenizer, example.response) if has_ended else decode(self.tokenizer, row, prompt)
                for example, row, has_ended, prompt in zip(examples, tokens, ended, prompt_tokens, strict=True)
            ],
            sampler_logprobs=torch.zeros(mask.shape),
            columns=prompts.columns,
        )

    def fingerprint(self) -> str:
        """Of texts, limits and tokenizer: of all that rows are made of."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            columns = [dict(pair.columns)] if pair.columns else []
            digest.update(json.dumps([pair.prompt, pair.chosen, pair.rejected, *columns], default=str).encode())
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        digest.update(json.dumps([[self.max_prompt_tokens, self.max_new_tokens], vocabulary]).encode())
        return digest.hexdigest()

    def _example(self, number: int) -> Demonstration:
        pair = self.pairs[number // 2]
        return Demonstration(pair.prompt, pair.rejected if number % 2 else pair.chosen, pair.columns)


def scores_file(config: RunConfig, reward_model: Path | None, answers: Answers) -> Path:
    """Where the scores of these answers under this reward are kept.

    Args:
        reward_model: folder of its weights; None where it has none.
    """
    hardware, reward = config.hardware, config.reward
    references = None
    if reward.normalize != "none":
        references = read_by_stage(config, "reward_model", "dataset")
        references |= {"dataset.num_prompts": config.dataset.num_prompts, "dataset.num_sft": config.dataset.num_sft}
    depends_on = {
        "revision": REVISION,
        "reward": read_by_stage(config, "evaluate", "reward"),  # without what the loop does with scores
        # Another server may score otherwise; one with a name is the same wherever it is.
        "url": address(reward.url) if reward.name == "http" and reward.url and reward.server is None else None,
        "reward_model": None if reward_model is None else fingerprint(str(reward_model)),
        "references": references,
        "answers": on_first_rank(answers.fingerprint),  # which reads all of them
        "hardware": [hardware.device, hardware.threads, hardware.ranks],
    }
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.cache_dir) / "scores" / f"{key}.txt"


class Scorable(Protocol):
    """Responses that can be had row by row."""

    def __len__(self) -> int: ...

    def rows(self, index: Tensor) -> Rollouts: ...


def scored_once(
    path: Path,
    answers: Scorable,
    score: Callable[[Rollouts], Tensor],
    *,
    what: str = "answers of the data set",
) -> Tensor:
    """(rows,) float32 scores of all answers, by whichever run comes first; the others wait and read its file.

    Each chunk is appended, and an interrupted run's file is gone on from. Every rank calls this at the same place;
    rank 0 holds the lock and the file.

    Args:
        score: Rollouts -> (B,) scores.
        what: what is scored, in messages.

    Raises:
        Interrupted: the run was asked to stop between two chunks, or while it waited.
    """
    with contextlib.ExitStack() as stack:
        lock = locked(path.with_suffix(".lock"), f"scores {what}")
        on_first_rank(lambda: stack.enter_context(lock))
        scores = on_first_rank(lambda: _read(path, len(answers)))
        while len(scores) < len(answers):
            if name := asked_to_stop():
                raise Interrupted(
                    f"stopped by {name}; {len(scores):,} of {len(answers):,} {what} are scored and kept; type the "
                    "command again to go on"
                )
            rows = torch.arange(len(scores), min(len(scores) + CHUNK, len(answers)))
            chunk = score(answers.rows(rows)).float()
            on_first_rank(functools.partial(_append, path, chunk))
            scores = torch.cat([scores, chunk])
        return scores


def _append(path: Path, chunk: Tensor) -> None:
    """One line: the scores, which JSON holds to the bit, and their checksum."""
    numbers = json.dumps(chunk.tolist())
    with file_errors(path, "append to it"):
        with path.open("a", encoding="ascii") as file:
            file.write(f"{zlib.crc32(numbers.encode())} {numbers}\n")
        flush_to_disk(path)


def _read(path: Path, rows: int) -> Tensor:
    """The scores that are there; of a damaged file none, and a line that names it."""
    with file_errors(path, "read it"):
        content = path.read_bytes() if path.exists() else b""
        lines = content[: content.rfind(b"\n") + 1]
        if len(lines) < len(content):  # a run was killed while it wrote
            os.truncate(path, len(lines))
    scores: list[float] = []
    try:
        for line in lines.splitlines():
            checksum, _, numbers = line.partition(b" ")
            if zlib.crc32(numbers) != int(checksum):
                raise ValueError("a line does not match its checksum")
            scores += json.loads(numbers)
        if not all(map(math.isfinite, scores)):
            raise ValueError("it holds scores that are not finite")
        if len(scores) > rows:
            raise ValueError(f"it holds {len(scores)} scores, and there are {rows} answers")
    except (ValueError, TypeError) as error:
        say(f"{path}: damaged ({reason(error)}); they are scored again")
        write_whole(path, "")
        scores = []
    return torch.tensor(scores, dtype=torch.float32)
