"""A few responses before and after training, matched by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.load import RunRecord, read_samples

PROMPTS_SHOWN = 3


@dataclass(frozen=True)
class SamplePair:
    """One evaluation prompt with its response at the first evaluation and at the last (rows of samples.jsonl)."""

    prompt: str
    before: dict[str, Any]
    after: dict[str, Any]


def sample_pairs(run: RunRecord) -> list[SamplePair]:
    """The first prompts that both evaluations hold, in the file's order: not chosen by how they look."""
    rows = [row for row in read_samples(run) if isinstance(row.get("prompt"), str) and "step" in row]
    if not rows:
        return []
    first, last = rows[0]["step"], rows[-1]["step"]
    if first == last:
        return []
    after = {row["prompt"]: row for row in rows if row["step"] == last}
    before = {row["prompt"]: row for row in rows if row["step"] == first}
    shared = [prompt for prompt in before if prompt in after]
    return [SamplePair(prompt, before[prompt], after[prompt]) for prompt in shared[:PROMPTS_SHOWN]]
