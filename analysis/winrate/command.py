"""`python -m analysis winrate`: models in, win rates of every pair out."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis.errors import WinrateError
from analysis.run_files import whole_text
from analysis.winrate.chat import INTERRUPTED, KNOWN_PRICES, Stopped, judge_by_chat
from analysis.winrate.matching import (
    Comparison,
    Matching,
    Model,
    Pair,
    make_comparisons,
    match_prompts,
    meeting_notes,
    read_models,
    read_pairs,
    read_references,
)
from analysis.winrate.output import prepare_folder, results_table, write_results
from analysis.winrate.prompt import DEFAULT_TEMPLATE
from analysis.winrate.results import Judgement, summarise
from analysis.winrate.scores import judge_by_score, reward_model_scores, stored_scores
from rlhf.terminal import NARROWEST, complain, say, tell
from rlhf.terminal import console as made_console

DEFAULT_CACHE = Path("cache/winrate/answers.jsonl")
NOTHING_READ = 2
"""As where a judge cannot be asked: there is no result, and something else must be typed."""
_FEW_PROMPTS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m analysis winrate`, each with its default and unit."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="NAME=SOURCE",
        help="two or more; SOURCE is a run folder (its last evaluation; FOLDER@first: the first, of the SFT policy) or "
        "a JSONL file with prompt, response and optionally reference and scores; seeds of one model: "
        "NAME=SOURCE1,SOURCE2, or a pattern, NAME=runs/default/apa-*; runs of one model are of one setting and "
        "meet the other model's by seed",
    )
    parser.add_argument(
        "--include-unfinished",
        action="store_true",
        help="take in runs that failed or have not ended, whose last evaluation is not their result",
    )
    parser.add_argument("--pairs", metavar="A:B,C:D", help="which models to compare (default: all pairs)")
    parser.add_argument("--references", type=Path, metavar="FILE", help="JSONL with prompt and reference")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N shared prompts")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="default: winrate/<judge>-<models>/ beside the runs"
    )
    parser.add_argument(
        "--judge",
        default="chat",
        metavar="JUDGE",
        help="chat: ask an OpenAI-compatible server (default); scores[:FIELD]: the number stored with each response "
        "(default field: reward); reward_model: score with --reward-path",
    )
    parser.add_argument(
        "--reward-path", metavar="PATH", help="folder or hub name of a reward model (--judge reward_model)"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that the model at --reward-path brings, with your rights (default: refuse it)",
    )
    group = parser.add_argument_group("--judge chat")
    group.add_argument("--model", default="gpt-4.1", help="the judge (default: %(default)s; the paper's was gpt-4)")
    group.add_argument(
        "--base-url",
        metavar="URL",
        help="of a server, such as http://localhost:8000/v1 (default: OPENAI_BASE_URL, OpenAI)",
    )
    group.add_argument("--timeout", type=_positive, default=60.0, metavar="SECONDS", help="per answer (%(default)g)")
    group.add_argument("--max-tokens", type=_count, default=512, metavar="N", help="of an answer (%(default)s)")
    group.add_argument("--concurrency", type=_count, default=4, metavar="N", help="requests at a time (%(default)s)")
    group.add_argument("--max-retries", type=_natural, default=5, metavar="N", help="of a failed request (%(default)s)")
    group.add_argument(
        "--parse-retries", type=_natural, default=2, metavar="N", help="of an answer without verdict (%(default)s)"
    )
    group.add_argument(
        "--reasoning-model",
        action="store_true",
        help="send max_completion_tokens and no temperature, as o- and gpt-5 need",
    )
    group.add_argument(
        "--template", type=Path, default=DEFAULT_TEMPLATE, metavar="FILE", help="the judge's instructions"
    )
    group.add_argument("--cache", type=Path, default=DEFAULT_CACHE, metavar="FILE", help="paid answers (%(default)s)")
    group = parser.add_argument_group("cost of --judge chat")
    known = ", ".join(KNOWN_PRICES)
    group.add_argument("--price-in", type=_price, metavar="USD", help=f"per million tokens in (known: {known})")
    group.add_argument("--price-out", type=_price, metavar="USD", help="per million tokens out")
    group.add_argument("--dry-run", action="store_true", help="show the cost and one request; send and write nothing")
    group.add_argument("--yes", action="store_true", help="do not ask before what may cost more than 1 USD")


def _natural(text: str) -> int:
    return int(_number(text, least=0, whole=True))


def _count(text: str) -> int:
    return int(_number(text, least=1, whole=True))


def _price(text: str) -> float:
    return _number(text, least=0)


def _positive(text: str) -> float:
    if _number(text, least=0) == 0.0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return float(text)


def _number(text: str, least: int, whole: bool = False) -> float:
    try:
        value = float(int(text) if whole else float(text))
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' * whole}number from {least} on")
    return value


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
    home = models[0].sources[0].path.resolve().parent  # the sweep folder of a run, the folder of a file
    folder = options.output or home / "winrate" / _slug(f"{name}-{_pairs_name(pairs)}")
    try:
        judgements, about_judge = _judge(options, kind, field, used, comparisons, folder)
    except Stopped as stop:
        complain(str(stop))
        return stop.status
    except KeyboardInterrupt:
        complain("interrupted: the same command goes on")
        return INTERRUPTED
    prepare_folder(folder)
    results = summarise(judgements)
    about = {"judge": name} | about_judge | _about_input(options, models, matching)
    files = write_results(folder, results, judgements, about)
    console = made_console(narrowest=NARROWEST)
    console.print(results_table(results, name))
    tell(console, f"written to {folder}: {', '.join(file.name for file in files)}")
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
    score = reward_model_scores(options.reward_path, trust_remote_code=options.trust_remote_code)
    return judge_by_score(comparisons, score), {"reward_path": options.reward_path}


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
                "evaluation": "first" if source.first else "last",
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
