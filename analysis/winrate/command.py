"""`python -m analysis winrate`: models in, win rates of every pair out."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis.plain import whole_text
from analysis.winrate.chat import INTERRUPTED, judge_by_chat
from analysis.winrate.errors import Stopped, WinrateError
from analysis.winrate.judgements import Judgement
from analysis.winrate.matching import (
    Comparison,
    Matching,
    Pair,
    make_comparisons,
    match_prompts,
    meeting_notes,
    read_pairs,
)
from analysis.winrate.options import add_arguments
from analysis.winrate.output import prepare_folder, results_table, write_results
from analysis.winrate.results import summarise
from analysis.winrate.scores import judge_by_score, stored_scores
from analysis.winrate.sources import Model, output_home, read_models, read_references
from rlhf.terminal import NARROWEST, complain, say, tell
from rlhf.terminal import console as made_console

__all__ = ["add_arguments", "run"]

NOTHING_READ = 2
"""As where a judge cannot be asked: there is no result, and something else must be typed."""
_FEW_PROMPTS = 16


def run(options: argparse.Namespace) -> int:
    """0 when it worked or was only asked what it would cost; 1 when the user declined the cost, 2 when the judge gave
    no verdict at all, 130 after Ctrl-C or SIGTERM.

    Raises:
        WinrateError: bad input, or a judge that cannot be asked.
    """
    models = read_models(options.models, include_unfinished=options.include_unfinished)
    pairs = read_pairs(options.pairs, models)
    used = [model for model in models if any(model.name in pair for pair in pairs)]
    references = read_references(options.references) if options.references else {}
    kind, _, field = options.judge.partition(":")
    matching = match_prompts(used, references, needs_reference=kind == "chat", limit=options.limit)
    comparisons = make_comparisons(models, pairs, matching)
    left_out = dict.fromkeys(f"left out: {line}" for model in used for line in model.left_out)
    say("\n".join([*left_out, *meeting_notes(models, pairs), matching.describe()]))
    from_runs = any(source.step is not None for model in used for source in model.sources)
    if matching.shared <= _FEW_PROMPTS and from_runs:
        say("more prompts: evaluation.samples decides how many a run keeps")
    if any(len(model.sources) > 1 for model in used):
        say(f"comparisons: {len(comparisons)}, seed by seed; a prompt counts once, with the mean over its seeds")
    name = whole_text(_judge_name(options, kind, field))
    folder = options.output or output_home(models[0].sources[0]) / "winrate" / _slug(f"{name}-{_pairs_name(pairs)}")
    try:
        judgements, about_judge = _judge(options, kind, field, used, comparisons, folder)
    except Stopped as stop:
        complain(str(stop))
        return stop.status
    except KeyboardInterrupt:
        complain("interrupted: the same command goes on")
        return INTERRUPTED
    _report(folder, judgements, {"judge": name} | about_judge | _about_input(options, models, matching))
    return _warn_of_unparsed(name, judgements)


def _judge(
    options: argparse.Namespace,
    kind: str,
    field: str,
    models: list[Model],
    comparisons: list[Comparison],
    folder: Path,
) -> tuple[list[Judgement], dict[str, Any]]:
    """Judgements, and what to say of the judge."""
    if kind == "chat":
        return judge_by_chat(options, comparisons, folder)
    if options.dry_run:
        raise Stopped(0, f"dry run: --judge {options.judge} has {len(comparisons)} comparisons and sends nothing")
    if kind == "scores":
        score = stored_scores(models, field or "reward")
        return judge_by_score(comparisons, score), {"field": field or "reward"}
    from analysis.winrate.reward_model import reward_model_scores

    score = reward_model_scores(options.reward_path, trust_remote_code=options.trust_remote_code)
    return judge_by_score(comparisons, score), {"reward_path": options.reward_path}


def _report(folder: Path, judgements: list[Judgement], about: dict[str, Any]) -> None:
    prepare_folder(folder)
    results = summarise(judgements)
    files = write_results(folder, results, judgements, about)
    console = made_console(narrowest=NARROWEST)
    console.print(results_table(results, about["judge"]))
    tell(console, f"written to {folder}: {', '.join(file.name for file in files)}")


def _warn_of_unparsed(judge: str, judgements: Sequence[Judgement]) -> int:
    """A line on stderr, and the status, where nothing that the judge was asked counts; 0 otherwise."""
    unparsed = [judgement for judgement in judgements if judgement.score is None]
    if not unparsed or not all(judgement.score is None or judgement.comparison.identical for judgement in judgements):
        return 0
    line = f"warning: no verdict of {judge} could be read ({len(unparsed)} comparisons); these results say nothing"
    complain(f"{line}; judgements.jsonl has its answers")
    return NOTHING_READ


def _pairs_name(pairs: Sequence[Pair]) -> str:
    """The models' names where every two of them meet, else pair by pair."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    if {frozenset(pair) for pair in pairs} == {frozenset(pair) for pair in itertools.combinations(names, 2)}:
        return "-".join(names)
    return "-".join(f"{first}-vs-{second}" for first, second in pairs)


def _judge_name(options: argparse.Namespace, kind: str, field: str) -> str:
    """How the judge is called in files and figures; of a path, the last two parts.

    Raises:
        WinrateError: no such judge.
    """
    if kind == "chat" and not field:
        return _ending(options.model)
    if kind == "scores":
        return f"scores:{field or 'reward'}"
    if kind == "reward_model" and not field:
        if not options.reward_path:
            raise WinrateError("--judge reward_model needs --reward-path FOLDER_OR_NAME")
        return f"reward_model:{_ending(options.reward_path)}"
    raise WinrateError(f"--judge {options.judge}: give chat, scores[:FIELD] or reward_model")


def _ending(path: str) -> str:
    return "/".join(path.rstrip("/").split("/")[-2:])


def _slug(name: str) -> str:
    """A folder name: what is neither a letter, a digit, a dot nor a dash becomes a dash."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip(".-") or "judge"


def _about_input(options: argparse.Namespace, models: list[Model], matching: Matching) -> dict[str, Any]:
    sources = {
        model.name: [
            {
                "path": str(source.path),
                "evaluation": source.which,
                "step": source.step,
                "seed": source.seed,
                "responses": len(source.answers),
            }
            for source in model.sources
        ]
        for model in models
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": sources,
        "left_out": [line for model in models for line in model.left_out],
        "references": str(options.references) if options.references else None,
        "prompts": {
            "judged": len(matching.prompts),
            "shared": matching.shared,
            "missing": matching.missing,
            "duplicated": matching.duplicated,
            "without_reference": matching.without_reference,
            "beyond_limit": matching.limited,
        },
    }
