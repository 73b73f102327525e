"""All that a report tells of a sweep, computed once: the comparison, and what else the runs show."""

from __future__ import annotations

from dataclasses import dataclass, replace

from analysis.ablation import Ablation, ablations
from analysis.compared import Comparison
from analysis.diagnoses import Diagnosis, diagnose
from analysis.envelope import Envelope, frontiers
from analysis.measures import ClaimsTable, Sensitivity, claims_table, sensitivities
from analysis.overoptimization import GoldFit, gold_fit
from analysis.verdict import Verdict, verdict


@dataclass(frozen=True)
class Findings:
    comparison: Comparison
    envelopes: list[Envelope]
    """The algorithms' frontiers over their KL knobs, which the verdict is then about; empty in other sweeps."""
    verdict: Verdict
    diagnoses: list[Diagnosis]
    claims: ClaimsTable
    sensitivities: list[Sensitivity]
    """Empty where no algorithm was run with two settings."""
    ablations: list[Ablation]
    """Empty where no algorithm's settings differ in one number alone."""
    gold_fits: list[GoldFit]
    """Empty without a gold reward."""


def findings(comparison: Comparison) -> Findings:
    found = frontiers(comparison)
    comparison = replace(comparison, notes=[*comparison.notes, *found.notes])
    fits = [fit for one in found.envelopes or comparison.settings if (fit := gold_fit(one))]
    return Findings(
        comparison=comparison,
        envelopes=found.envelopes,
        verdict=verdict(comparison, found.envelopes),
        diagnoses=diagnose(comparison),
        claims=claims_table(comparison),
        sensitivities=sensitivities(comparison),
        ablations=ablations(comparison),
        gold_fits=fits,
    )
