"""`python -m analysis winrate`: models in, win rates of every pair out."""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from analysis.errors import WinrateError
from analysis.run_files import whole_text
from analysis.winrate.chat import KNOWN_PRICES, Stopped, judge_by_chat
from analysis.winrate.matching import (
    Comparison,
    Models,
    Pair,
    Source,
    make_comparisons,
    match_prompts,
    read_models,
    read_pairs,
    read_references,
)
from analysis.winrate.output import prepare_folder, results_table, write_results
from analysis.winrate.prompt import DEFAULT_TEMPLATE
from analysis.winrate.results import Judgement, summarise
from analysis.winrate.scores import judge_by_score, reward_model_scores, stored_scores
from rlhf.terminal import NARROWEST, complain, console, say, tell
from rlhf.waiting import Interrupted

DEFAULT_CACHE = Path("cache/winrate/answers.jsonl")
_FEW_PROMPTS = 16

Number = TypeVar("Number", int, float)


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
    unfinished = "take in runs that failed or have not ended, whose last evaluation is not their result"
    code = "run Python code that the model at --reward-path brings, with your rights (default: refuse it)"
    judge = "chat: ask an OpenAI-compatible server (default); scores[:FIELD]: the number stored with each response "
    judge += "(default field: reward); reward_model: score with --reward-path"
    add = parser.add_argument
    add("--include-unfinished", action="store_true", help=unfinished)
    add("--pairs", metavar="A:B,C:D", help="which models to compare (default: all pairs)")
    add("--references", type=Path, metavar="FILE", help="JSONL with prompt and reference")
    add("--limit", type=_from(1, int), metavar="N", help="only the first N shared prompts")
    add("--output", type=Path, metavar="FOLDER", help="default: winrate/<judge>-<models>/ beside the runs")
    add("--judge", default="chat", metavar="JUDGE", help=judge)
    add("--reward-path", metavar="PATH", help="folder or hub name of a reward model (--judge reward_model)")
    add("--trust-remote-code", action="store_true", help=code)
    add = parser.add_argument_group("--judge chat").add_argument
    url = "of a server, such as http://localhost:8000/v1 (default: OPENAI_BASE_URL, OpenAI)"
    reasoning = "send max_completion_tokens and no temperature, as o- and gpt-5 need"
    parse = "of an answer without verdict (%(default)s)"
    add("--model", default="gpt-4.1", help="the judge (default: %(default)s; the paper's was gpt-4)")
    add("--base-url", metavar="URL", help=url)
    add("--timeout", type=_from(0.1, float), default=60.0, metavar="SECONDS", help="per answer (%(default)g)")
    add("--max-tokens", type=_from(1, int), default=512, metavar="N", help="of an answer (%(default)s)")
    add("--concurrency", type=_from(1, int), default=4, metavar="N", help="requests at a time (%(default)s)")
    add("--max-retries", type=_from(0, int), default=5, metavar="N", help="of a failed request (%(default)s)")
    add("--parse-retries", type=_from(0, int), default=2, metavar="N", help=parse)
    add("--reasoning-model", action="store_true", help=reasoning)
    add("--template", type=Path, default=DEFAULT_TEMPLATE, metavar="FILE", help="the judge's instructions")
    add("--cache", type=Path, default=DEFAULT_CACHE, metavar="FILE", help="paid answers (%(default)s)")
    add = parser.add_argument_group("cost of --judge chat").add_argument
    price = f"per million tokens in (known: {', '.join(KNOWN_PRICES)})"
    add("--price-in", type=_from(0, float), metavar="USD", help=price)
    add("--price-out", type=_from(0, float), metavar="USD", help="per million tokens out")
    add("--dry-run", action="store_true", help="show the cost and one request; send and write nothing")
    add("--yes", action="store_true", help="do not ask before what may cost more than 1 USD")


def _from(least: Number, kind: Callable[[str], Number]) -> Callable[[str], Number]:
    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a {whole}number from {least} on")
        return kind(text)

    return read


def run(options: argparse.Namespace) -> int:
    """0 when it worked or was only asked what it would cost; 1 when the user declined the cost, 2 when the judge gave
    no verdict at all, 130 after Ctrl-C or SIGTERM.

    Raises:
        WinrateError: bad input, or a judge that cannot be asked.
        FileError: a file that cannot be read or written.
    """
    kind, _, field = options.judge.partition(":")
    judge = _judge_name(options, kind, field)
    models, left_out = read_models(options.models, include_unfinished=options.include_unfinished)
    pairs = read_pairs(options.pairs, list(models))
    used = {name: sources for name, sources in models.items() if any(name in pair for pair in pairs)}
    extra = read_references(options.references) if options.references else {}
    references, counts = match_prompts(used, extra, needs_reference=kind == "chat", limit=options.limit)
    comparisons, notes = make_comparisons(used, pairs, references)
    reasons = "{missing} missing in some source, {duplicated} duplicated, {without_reference} without reference, "
    reasons = (reasons + "{beyond_limit} beyond --limit").format(**counts)
    prompts = f"prompts: {counts['shared']} shared by all models ({reasons}); {counts['judged']} judged"
    say("\n".join([*(f"left out: {line}" for line in left_out), *notes, prompts]))
    sources = [source for of_model in used.values() for source in of_model]
    if counts["shared"] <= _FEW_PROMPTS and any(source.step is not None for source in sources):
        say("more prompts: evaluation.samples decides how many a run keeps")
    if len(sources) > len(used):
        say(f"comparisons: {len(comparisons)}, seed by seed; a prompt counts once, with the mean over its seeds")
    home = sources[0].path.resolve().parent  # the sweep folder of a run, the folder of a file
    folder = options.output or home / "winrate" / _slug(judge, pairs)
    try:
        judgements, about_judge = _judge(options, kind, field, used, comparisons, folder)
    except Stopped as stop:
        complain(str(stop))
        return stop.status
    except (Interrupted, KeyboardInterrupt) as stop:
        complain(str(stop) or "interrupted: the same command goes on")
        return 130
    table, habits = summarise(judgements)
    about = {"judge": judge, "date": datetime.now(UTC).isoformat(timespec="seconds"), **about_judge}
    about |= {"models": {name: list(map(_about, sources)) for name, sources in used.items()}}
    about |= {"left_out": left_out, "references": options.references and str(options.references), "prompts": counts}
    prepare_folder(folder)
    files = write_results(folder, table, habits, judgements, about)
    stdout = console(narrowest=NARROWEST)
    stdout.print(results_table(table, habits, judge, stdout.width))
    tell(stdout, f"written to {folder}: {', '.join(file.name for file in files)}")
    unparsed = [one for one in judgements if one.score is None]
    if unparsed and all(one.score is None or one.comparison.identical for one in judgements):
        line = f"warning: no verdict of {judge} could be read ({len(unparsed)} comparisons); these results say nothing"
        complain(f"{line}; judgements.jsonl has its answers")
        return 2
    return 0


def _judge(
    options: argparse.Namespace, kind: str, field: str, models: Models, comparisons: Sequence[Comparison], folder: Path
) -> tuple[list[Judgement], dict[str, Any]]:
    """Judgements, and what to say of the judge."""
    if kind == "chat":
        return judge_by_chat(options, comparisons, folder)
    if options.dry_run:
        raise Stopped(0, f"dry run: --judge {options.judge} has {len(comparisons)} comparisons and sends nothing")
    if kind == "scores":
        score, about = stored_scores(models, field or "reward"), {"field": field or "reward"}
    else:
        score = reward_model_scores(options.reward_path, trust_remote_code=options.trust_remote_code)
        about = {"reward_path": options.reward_path}
    return judge_by_score(comparisons, score), about


def _judge_name(options: argparse.Namespace, kind: str, field: str) -> str:
    """How the judge is called in files and figures; of a path, the last two parts.

    Raises:
        WinrateError: no such judge.
    """
    if kind == "scores":
        return whole_text(f"scores:{field or 'reward'}")
    if field or kind not in ("chat", "reward_model"):
        raise WinrateError(f"--judge {options.judge}: give chat, scores[:FIELD] or reward_model")
    if kind == "reward_model" and not options.reward_path:
        raise WinrateError("--judge reward_model needs --reward-path FOLDER_OR_NAME")
    path = options.model if kind == "chat" else options.reward_path
    ending = whole_text("/".join(path.rstrip("/").split("/")[-2:]))
    return ending if kind == "chat" else f"reward_model:{ending}"


def _slug(judge: str, pairs: Sequence[Pair]) -> str:
    """A folder name of judge and models: their names where every two of them meet, else pair by pair."""
    names = list(dict.fromkeys(itertools.chain.from_iterable(pairs)))
    every_two = len(pairs) == math.comb(len(names), 2)
    of_pairs = names if every_two else [f"{first}-vs-{second}" for first, second in pairs]
    return re.sub(r"[^\w.-]", "-", "-".join([judge, *of_pairs])).strip(".-") or "judge"


def _about(source: Source) -> dict[str, Any]:
    about = {"path": str(source.path), "evaluation": "first" if source.first else "last", "step": source.step}
    return about | {"seed": source.seed, "responses": len(source.answers)}
