"""Every fault of a reported KL that the command knows, planted in made-up logprobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.__main__ import main

Row = dict[str, Any]
VOCABULARY, PROMPT, RESPONSE = 6, 5, 20


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def rows(count: int = 400, top_k: int | None = None) -> list[Row]:
    """Responses drawn from a random policy, whose reference is another one."""
    draw = np.random.default_rng(0)
    made = []
    for _ in range(count):
        logits = draw.normal(size=(PROMPT + RESPONSE, VOCABULARY))
        policy, reference = softmax(logits), softmax(logits + 0.4 * draw.normal(size=logits.shape))
        sampler = policy
        if top_k is not None:
            sampler = np.where(policy >= np.sort(policy)[:, [-top_k]], policy, 0.0)
            sampler = sampler / sampler.sum(-1, keepdims=True)
        tokens = np.array([draw.choice(VOCABULARY, p=p) for p in sampler])
        at = np.arange(len(tokens)), tokens
        mask = np.arange(len(tokens)) >= PROMPT
        d = (np.log(policy[at]) - np.log(reference[at]))[mask]
        made.append(
            {
                "logprobs": np.log(policy[at]).tolist(),
                "reference_logprobs": np.log(reference[at]).tolist(),
                "sampler_logprobs": np.log(sampler[at]).tolist(),
                "mask": mask.astype(int).tolist(),
                "kl": float((np.expm1(-d) + d).sum()),
            }
        )
    return made


def d_of(row: Row, whole: bool = False) -> np.ndarray:
    d = np.array(row["logprobs"]) - np.array(row["reference_logprobs"])
    return d if whole else d[np.array(row["mask"]) == 1]


def checked(tmp_path: Path, capsys: pytest.CaptureFixture[str], made: list[Row], *options: str) -> tuple[int, str]:
    file = tmp_path / "logprobs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    code = main(["kl-check", str(file), *options])
    return code, capsys.readouterr().out


def test_what_is_right_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = checked(tmp_path, capsys, rows())
    assert code == 0 and "WRONG" not in said
    assert "is k3 in nats a response" in said and "KL by k1" in said and "400 responses, 8,000 tokens" in said


@pytest.mark.parametrize(
    ("reported", "code", "words"),
    [
        (lambda row: d_of(row).sum(), 0, "k1 in nats a response"),
        (lambda row: d_of(row).mean(), 0, "k1 in nats a token"),
        (lambda row: (d_of(row) ** 2 / 2).sum(), 0, "k2"),
        (lambda row: -d_of(row).sum(), 1, "sign turned"),
        (lambda row: -(d_of(row) ** 2 / 2).mean(), 1, "k2 in nats a token with its sign turned"),
        (lambda row: (np.expm1(d_of(row)) - d_of(row)).sum(), 1, "swapped"),
        (lambda row: abs(d_of(row)).sum(), 1, "absolute value of k1"),
        (lambda row: d_of(row).sum() / np.log(2), 0, "k1 in bits a response"),
        (lambda row: d_of(row).sum() / (PROMPT + RESPONSE), 1, "divided by the tokens of prompt and response"),
        (lambda row: d_of(row, whole=True)[PROMPT - 1 : -1].sum(), 1, "shifted"),
        (lambda row: d_of(row, whole=True).sum(), 1, "the mask counts prompts"),
        (lambda row: d_of(row).clip(-0.1, 0.1).sum(), 1, "clamped"),
    ],
)
def test_the_estimate_that_was_reported_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reported: Callable[[Row], float], code: int, words: str
) -> None:
    made = [{**row, "kl": float(reported(row))} for row in rows(100)]
    assert checked(tmp_path, capsys, made)[0] == code
    assert words in checked(tmp_path, capsys, made)[1]
    other = [{("objective/kl" if key == "kl" else key): value for key, value in row.items()} for row in made]
    assert words in checked(tmp_path, capsys, other, "--kl-key", "objective/kl")[1]


def test_one_number_for_the_whole_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = rows(100)
    of_all = [row | {"kl": float(np.mean([d_of(one).sum() for one in made]))} for row in made]
    code, said = checked(tmp_path, capsys, of_all)
    assert code == 0 and "k1 in nats a response" in said


def test_a_mask_that_counts_the_prompt_without_a_reported_kl(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The prompt's tokens were not drawn from the policy, which has learned to expect them: all lie above the reference.
    made = []
    for row in rows(200):
        prompt = [one - 0.1 for one in row["logprobs"][:PROMPT]]
        reference = [*prompt, *row["reference_logprobs"][PROMPT:]]
        made.append({"logprobs": row["logprobs"], "reference_logprobs": reference, "mask": [1] * (PROMPT + RESPONSE)})
    code, said = checked(tmp_path, capsys, made)
    assert code == 1 and "the mask counts prompts" in said and "not checked: without sampler_logprobs" in said


def test_swapped_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [
        {**row, "logprobs": row["reference_logprobs"], "reference_logprobs": row["logprobs"], "kl": None}
        for row in rows()
    ]
    code, said = checked(tmp_path, capsys, made)
    assert code == 1 and "are swapped" in said


def test_logprobs_of_a_sampler_that_cuts_the_distribution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = checked(tmp_path, capsys, rows(top_k=2))
    assert code == 1 and "renormalised by top-p, top-k" in said
    turned = [row | {"logprobs": row["sampler_logprobs"], "sampler_logprobs": row["logprobs"]} for row in rows(top_k=2)]
    assert "the trainer's nearly always the higher ones" in checked(tmp_path, capsys, turned)[1]
    # Without the trainer's logprobs: the policy's are renormalised, the reference's are not.
    made = [{**row, "logprobs": row["sampler_logprobs"]} for row in rows(top_k=2)]
    code, said = checked(tmp_path, capsys, [{k: v for k, v in row.items() if k[:3] != "sam"} for row in made])
    assert code == 1 and "not 1" in said


def test_another_temperature_of_the_sampler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(1)
    made = [
        {**row, "sampler_logprobs": np.minimum(0.0, row["logprobs"] + draw.normal(0, 0.2, PROMPT + RESPONSE)).tolist()}
        for row in rows(50)
    ]
    code, said = checked(tmp_path, capsys, made)
    assert code == 1 and "to both sides" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logprobs": "no"}, "no list of numbers"),
        ({"logprobs": [-(10**400)] * (PROMPT + RESPONSE)}, "no list of numbers"),
        ({"logprobs": [-1.0]}, "different lengths"),
        ({"logprobs": [0.5] * (PROMPT + RESPONSE)}, "above 0"),
        ({"mask": [0] * (PROMPT + RESPONSE)}, "no token of the response"),
        ({"kl": "much"}, "no finite number"),
        ({"reference_logprobs": None}, "reference_logprobs"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Row, words: str) -> None:
    made = rows(10)
    made[3] = {key: value for key, value in {**made[3], **change}.items() if value is not None}
    file = tmp_path / "logprobs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    assert main(["kl-check", str(file)]) == 2
    error = capsys.readouterr().err
    assert words in error and ":4:" in error and error.count("\n") == 1


def test_a_missing_or_short_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kl-check", str(tmp_path / "none.jsonl")]) == 2
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    assert main(["kl-check", str(tmp_path / "bad.jsonl")]) == 2
    assert "bad.jsonl:1" in capsys.readouterr().err
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(10)))
    assert main(["kl-check", str(tmp_path / "good.jsonl"), "--kl-key", "KL"]) == 2
    assert "--kl-key" in capsys.readouterr().err
    (tmp_path / "short.jsonl").write_text(json.dumps(rows(1)[0]) + "\n")
    assert main(["kl-check", str(tmp_path / "short.jsonl")]) == 2
    assert "at least 8" in capsys.readouterr().err
