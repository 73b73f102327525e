"""What the workspace shows: sections and panels over the sweep's runs and its analysis run.

Imports wandb-workspaces, an optional extra: `command` imports this module last. A panel is made only for metrics that
some run has, so that none stays empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.expr import And, Metric
from wandb_workspaces.reports.v2.interface import PanelTypes
from wandb_workspaces.workspaces.internal import View

from analysis.compared import Comparison
from analysis.labels import differing_keys, flatten
from analysis.load import RL_STAGES
from analysis.looks import COLOURS, algorithm_looks
from analysis.summary import samples_name
from analysis.wandb_run import (
    EFFICIENCY_TABLE,
    JOB_TYPE,
    RUNS_TABLE,
    SAMPLES_TABLE,
    Destination,
    SweepCurves,
    sample_rows,
)
from rlhf.errors import FileError
from rlhf.runs.state import times_emptied

# W&B draws ten groups in a panel; a setting with more values is a continuous one that a study drew.
_MAX_GROUPS = 10
_MAX_RUNS = 1000  # W&B's own limit for a panel

_OUTCOMES = ("eval/reward", "eval/gold_reward", "eval/kl")
_TRAINING = (
    "train/entropy",
    "train/response_length",
    "train/kl_coef",
    "train/clip_fraction",
    "train/infeasible_target_fraction",
    "train/kl",
)


@dataclass(frozen=True)
class _Sweep:
    """What the panels draw on."""

    comparison: Comparison
    curves: SweepCurves
    destination: Destination
    metrics: tuple[str, ...]  # of _OUTCOMES and _TRAINING, those that some compared run logged
    groupings: tuple[str, ...]  # config keys: the algorithm, then what the sweep varies beside it and the seed

    @property
    def names(self) -> list[str]:
        return [setting.name for setting in self.comparison.settings]


def build_workspace(comparison: Comparison, curves: SweepCurves, destination: Destination) -> ws.Workspace:
    """The workspace of one sweep, filtered to its runs and its analysis run; needs no server."""
    records = [run.record for setting in comparison.settings for run in setting.runs]
    logged = tuple(
        name for name in (*_OUTCOMES, *_TRAINING) if any(np.isfinite(record.column(name)).any() for record in records)
    )
    sweep = _Sweep(comparison, curves, destination, logged, ("algo.name", *_varied(comparison)))
    sections = {
        "Reward and KL": _reward_and_kl(sweep),
        "Reward over KL": _reward_over_kl(sweep),
        "KL efficiency": _kl_efficiency(sweep),
        "Samples": _samples(sweep),
        "Training": [panel for name in _TRAINING if name in logged for panel in _grouped(sweep, name)],
    }
    # Neither SFT and reward models nor the curves that each end of the sweep left.
    shown = [Metric("Group") == destination.sweep, Metric("JobType").isin([*RL_STAGES, JOB_TYPE])]
    if destination.name != destination.sweep:  # nor, for a copied folder, the averages of the original
        shown.append(Metric("ID") != f"{destination.sweep}-{JOB_TYPE}")
    return ws.Workspace(
        entity=destination.entity or "",
        project=destination.project,
        name=f"{destination.name} reward and KL",
        sections=[
            ws.Section(name=name, panels=panels, is_open=True, layout_settings=_layout(panels))
            for name, panels in sections.items()
            if panels
        ],
        settings=ws.WorkspaceSettings(max_runs=max(_MAX_GROUPS, min(_MAX_RUNS, len(records) + 1))),
        runset_settings=ws.RunsetSettings(
            filters=And(*shown),
            run_settings=_run_settings(comparison),
            pinned_columns=["summary:eval/reward", "summary:eval/kl", "config:algo.value.name", "config:seed.value"],
        ),
    )


def to_json(workspace: ws.Workspace) -> str:
    """The view in the form in which W&B's server takes it."""
    return json.dumps(json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True)), indent=2)


def reuse_saved(workspace: ws.Workspace, text: str) -> None:
    """Save over the view that `text`, of `to_json`, says was saved to the same project; offline, keep its name."""
    try:
        before = View.model_validate_json(text)
    except ValueError:
        return
    workspace.entity = workspace.entity or before.entity
    if (before.entity, before.project) == (workspace.entity, workspace.project):
        workspace._internal_name, workspace._internal_id = before.name, before.id


def wandb_ids(folder: Path, sweep: str) -> list[str]:
    """The W&B ids of a run folder, one more for each time that it was overwritten; the last is the run's own."""
    try:
        overwrites = times_emptied(folder)
    except FileError:
        overwrites = 0
    first = f"{sweep}-{folder.name}"
    return [first, *(f"{first}-g{count}" for count in range(1, overwrites + 1))]


def _varied(comparison: Comparison) -> Iterator[str]:
    """Settings, beside the seed, in which runs of one algorithm differ, if few enough values to tell apart."""
    configs: dict[str, list[dict]] = {}
    for setting in comparison.settings:
        configs.setdefault(setting.algo, []).extend(flatten(run.record.config) for run in setting.runs)
    keys = {key: None for flats in configs.values() for key in differing_keys(flats)}  # a dict keeps the order
    for key in keys:
        values = {flat[key] for flats in configs.values() for flat in flats if key in flat}
        if len(values) <= _MAX_GROUPS:
            yield key


def _grouped(sweep: _Sweep, metric: str) -> Iterator[wr.LinePlot]:
    """The metric over responses, once for each grouping: mean, and a band from minimum to maximum."""
    for key in sweep.groupings:
        top, *rest = key.split(".")
        yield wr.LinePlot(
            title=f"{metric} by {key}",
            x="samples",
            y=[metric],
            title_x=samples_name(sweep.comparison.settings),
            # In full: W&B wraps each top-level setting in `value`, and wr.Config would take our group `value` for it.
            groupby=".".join([top, "value", *rest]),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )


def _reward_and_kl(sweep: _Sweep) -> list[wr.LinePlot]:
    panels = [panel for name in _OUTCOMES if name in sweep.metrics for panel in _grouped(sweep, name)]
    if len(sweep.groupings) > 1 or any(setting.label for setting in sweep.comparison.settings):
        # W&B groups by one key at a time; the analysis run has every setting apart.
        for quantity in ("reward", "kl"):
            panels += _averaged(sweep, f"{quantity} of each setting", "samples", f"over_samples/{{}}/{quantity}_mean")
    return panels


def _reward_over_kl(sweep: _Sweep) -> list[wr.LinePlot]:
    gain = "over_kl/{}/reward_gain"
    return [
        *_averaged(sweep, "best reward gained within KL, mean over seeds", "kl", f"{gain}_mean"),
        *_averaged(sweep, "95 % interval of that mean", "kl", f"{gain}_mean", f"{gain}_low", f"{gain}_high"),
        *_averaged(sweep, "minimum and maximum over seeds", "kl", f"{gain}_mean", f"{gain}_min", f"{gain}_max"),
        *(
            wr.LinePlot(title=f"{name} over KL, each run", x="eval/kl", y=[name], title_x="KL, nats per response")
            for name in ("eval/reward", "eval/gold_reward")
            if name in sweep.metrics
        ),
    ]


def _averaged(sweep: _Sweep, title: str, x: str, line: str, *bounds: str) -> Iterator[wr.LinePlot]:
    """Curves of the analysis run, a line per setting; none where the run lacks the bounds. {} stands for the setting.

    Bounds are dashed, in the colour of their line.
    """
    keys = {(name, kind): kind.format(name) for name in sweep.names for kind in (line, *bounds)}
    keys = {place: key for place, key in keys.items() if key in sweep.curves.keys}
    if not {kind for _, kind in keys}.issuperset((line, *bounds)):
        return
    colours = dict(zip(sweep.names, _setting_colours(sweep.comparison), strict=True))
    run_id = sweep.destination.run_id
    yield wr.LinePlot(
        title=title,
        x=x,
        y=list(keys.values()),
        title_x=samples_name(sweep.comparison.settings) if x == "samples" else "KL, nats per response",
        line_colors={f"{run_id}:{key}": colours[name] for (name, _), key in keys.items()},
        line_marks={f"{run_id}:{key}": "dashed" for (_, kind), key in keys.items() if kind in bounds},
        line_titles={f"{run_id}:{key}": _line_title(name, kind) for (name, kind), key in keys.items()},
    )


def _line_title(setting: str, kind: str) -> str:
    ending = kind.rsplit("_", 1)[-1]
    return setting if ending == "mean" else f"{setting}, {ending}"


def _kl_efficiency(sweep: _Sweep) -> list[PanelTypes]:
    panels: list[PanelTypes] = [
        wr.ScatterPlot(title=f"{name} against eval/kl at the end, each run", x="eval/kl", y=name)
        for name in ("eval/reward", "eval/gold_reward")
        if name in sweep.metrics and "eval/kl" in sweep.metrics
    ]
    # A run's own efficiency is in no summary on W&B: the points come from the analysis run's table.
    panels.append(
        wr.CustomChart(
            query={"summaryTable": {"tableKey": RUNS_TABLE}},
            chart_name="wandb/scatter/v0",
            chart_fields={"x": "eval/kl", "y": "kl_efficiency"},
            chart_strings={"title": "KL efficiency against eval/kl at the end, each run"},
        )
    )
    for area, title in (
        ("kl_efficiency", "KL efficiency within the KL that every run reached, mean over seeds"),
        ("reward_gain_at_budget", "reward gained within the KL that every run reached, mean over seeds"),
    ):
        panels.append(wr.BarPlot(title=title, metrics=[f"{area}/{name}" for name in sweep.names]))
    return [*panels, wr.WeavePanelSummaryTable(table_name=EFFICIENCY_TABLE)]


def _samples(sweep: _Sweep) -> list[wr.WeavePanelSummaryTable]:
    return [wr.WeavePanelSummaryTable(table_name=SAMPLES_TABLE)] if sample_rows(sweep.comparison) else []


def _layout(panels: Sequence[object]) -> ws.SectionLayoutSettings:
    tables = all(isinstance(panel, wr.WeavePanelSummaryTable) for panel in panels)
    columns = 1 if tables else 3
    return ws.SectionLayoutSettings(columns=columns, rows=min(3, -(-len(panels) // columns)))


def _run_settings(comparison: Comparison) -> dict[str, ws.RunSettings]:
    """A colour per algorithm, since a scatter plot cannot group; runs that were overwritten since are switched off."""
    settings = {}
    for setting in comparison.settings:
        for run in setting.runs:
            *overwritten, own = wandb_ids(run.record.folder, run.record.sweep)
            colour = _colour(setting.algo, comparison)
            settings[own] = ws.RunSettings(color=colour)
            settings |= {old: ws.RunSettings(color=colour, disabled=True) for old in overwritten}
    return settings


def _setting_colours(comparison: Comparison) -> list[str]:
    """The algorithm's where it has one setting, else one after the other."""
    algos = [setting.algo for setting in comparison.settings]
    if len(set(algos)) == len(algos):
        return [_colour(algo, comparison) for algo in algos]
    return [COLOURS[place % len(COLOURS)] for place in range(len(algos))]


def _colour(algo: str, comparison: Comparison) -> str:
    algos = sorted({setting.algo for setting in comparison.settings})
    return algorithm_looks(algos)[algos.index(algo)].colour
