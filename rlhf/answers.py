"""A data set's own answers as Rollouts, and their scores: computed once for all runs of a sweep, kept in the cache."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.batches import Rollouts, pad
from rlhf.config import RunConfig
from rlhf.config.identity import REVISION, fingerprint, read_by_stage
from rlhf.data.examples import Demonstration, Preference
from rlhf.data.tokenize import encode_prompts
from rlhf.distributed import first_says
from rlhf.errors import reason
from rlhf.files import os_error_with_path, told_with_path, write_whole
from rlhf.terminal import say
from rlhf.text import answer_text, decode, encode_answer, pad_id
from rlhf.urls import address
from rlhf.waiting import acquired

CHUNK = 256
"""Answers scored between two writes: what an interruption can lose."""


class Answers:
    """Every prompt of the pairs with its chosen answer (even rows) and its rejected one (odd rows)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[Preference],
        max_prompt_tokens: int,
        max_new_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.pairs = pairs
        self.limits = max_prompt_tokens, max_new_tokens

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def rows(self, index: Tensor) -> Rollouts:
        """The answers that `index` (an int64 vector) names, in its order, as if they had been sampled.

        An answer of more than max_new_tokens is cut, tokens and scored text alike, and has not ended.
        """
        max_prompt_tokens, longest = self.limits
        picked = [self._example(number) for number in index.tolist()]
        prompts = encode_prompts(self.tokenizer, picked, max_prompt_tokens)
        whole = [encode_answer(self.tokenizer, example.response) for example in picked]
        ended = [len(tokens) <= longest for tokens in whole]
        kept = [tokens[:longest] for tokens in whole]
        before = [row[held].tolist() for row, held in zip(prompts.input_ids, prompts.mask, strict=True)]
        response_ids, mask = pad(kept, pad_id(self.tokenizer), left=False)
        return Rollouts(
            prompt_ids=prompts.input_ids,
            prompt_mask=prompts.mask,
            response_ids=response_ids,
            mask=mask,
            ended=torch.tensor(ended),
            prompts=prompts.texts,
            references=[""] * len(picked),
            responses=[
                answer_text(self.tokenizer, example.response) if has_ended else decode(self.tokenizer, tokens, prompt)
                for example, tokens, has_ended, prompt in zip(picked, kept, ended, before, strict=True)
            ],
            sampler_logprobs=torch.zeros(mask.shape),
        )

    def fingerprint(self) -> str:
        """Of texts, limits and tokenizer: of all that rows are made of."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(json.dumps([pair.prompt, pair.chosen, pair.rejected]).encode())
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        digest.update(json.dumps([self.limits, vocabulary]).encode())
        return digest.hexdigest()

    def _example(self, number: int) -> Demonstration:
        pair = self.pairs[number // 2]
        return Demonstration(pair.prompt, pair.rejected if number % 2 else pair.chosen)


def scores_file(config: RunConfig, reward_model: Path | None, answers: Answers) -> Path:
    """Where the scores of these answers under this reward are kept.

    Args:
        reward_model: folder of its weights; None where it has none.
    """
    hardware, reward = config.hardware, config.reward
    references = read_by_stage(config, "reward_model", "dataset")
    depends_on = {
        "revision": REVISION,
        "reward": read_by_stage(config, "evaluate", "reward"),  # without what the loop does with scores
        # Another server may score otherwise; one with a name is the same wherever it is.
        "url": address(reward.url) if reward.name == "http" and reward.url and reward.server is None else None,
        "reward_model": None if reward_model is None else fingerprint(str(reward_model)),
        "references": None if config.reward.normalize == "none" else references,
        "answers": first_says(answers.fingerprint),  # which reads all of them
        "hardware": [hardware.device, hardware.threads, hardware.ranks],
    }
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.cache_dir) / "scores" / f"{key}.npz"


def scored_once(
    path: Path, answers: Answers, score: Callable[[Rollouts], Tensor], keep_going: Callable[[str], None]
) -> Tensor:
    """(rows,) float32 scores of all answers, by whichever run comes first; the others wait and read its file.

    Every rank calls this at the same place; rank 0 holds the lock and the files.

    Args:
        score: Rollouts -> (B,) scores.
        keep_going: called between chunks and while waiting with what has been done so far; may raise to stop.
    """
    with told_with_path(path.parent, "make it"):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    while not first_says(lambda: acquired(lock, timeout=1.0)):
        keep_going("another run scores the data set's answers")
    try:
        found = first_says(lambda: _read(path, len(answers)))
        return _score_all(path, answers, score, keep_going) if found is None else found
    finally:
        lock.release()


def _score_all(
    path: Path, answers: Answers, score: Callable[[Rollouts], Tensor], keep_going: Callable[[str], None]
) -> Tensor:
    """All chunks from the first that `<path>.partial` does not hold; the caller has the lock."""
    partial = path.with_suffix(".partial")
    done = first_says(lambda: _whole_chunks(partial))
    for first in range(done, len(answers), CHUNK):
        keep_going(f"{first:,} of the data set's {len(answers):,} answers are scored and kept")
        scores = score(answers.rows(torch.arange(first, min(first + CHUNK, len(answers)))))
        first_says(functools.partial(_put, partial, first, scores))
    return first_says(lambda: _whole(path, partial))


def _put(partial: Path, first: int, scores: Tensor) -> None:
    """Write a chunk behind the `first` scores that are there."""
    with told_with_path(partial, "keep scores in it"), partial.open("ab") as file:
        file.truncate(4 * first)
        file.write(scores.float().numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())


def _whole(path: Path, partial: Path) -> Tensor:
    """All chunks as the file that other runs read."""
    with told_with_path(partial, "read it"):
        scores = np.fromfile(partial, dtype=np.float32)
    content = io.BytesIO()
    np.savez(content, scores=scores)  # a zip file, whose checksum tells damage
    write_whole(path, content.getvalue())
    partial.unlink()
    return torch.from_numpy(scores)


def _whole_chunks(partial: Path) -> int:
    """Scores of the whole chunks that an interrupted process has left, up to the first that is not finite."""
    if not partial.exists():
        return 0
    with told_with_path(partial, "read it"):
        scores = np.fromfile(partial, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        say(f"{partial}: score {bad[0]} is not finite; the answers from there on are scored again")
    return int(bad[0] if len(bad) else len(scores)) // CHUNK * CHUNK


def _read(path: Path, rows: int) -> Tensor | None:
    """None where there is no file, or, in a line that names it, a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            scores = archive["scores"]
        if scores.shape != (rows,) or scores.dtype != np.float32:
            raise ValueError(f"it does not hold {rows} scores")
        if not np.isfinite(scores).all():
            raise ValueError("it holds scores that are not finite")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        say(f"{path}: damaged ({reason(error)}); the answers are scored again")
        return None
    except OSError as error:
        raise os_error_with_path(error, path, "read it") from error
    return torch.from_numpy(scores)
