"""What to try on each diagnosis, in the options that the setting's algorithm has."""

from __future__ import annotations

from analysis.load import RunRecord


def remedy(kind: str, run: RunRecord) -> str:
    """What to change, with the value that the run had; `kind` is the diagnosis's."""
    slower = f"lower {_option(run, 'optimization.learning_rate')}"
    closer = _staying_close(run)
    if kind == "not a number":
        return f"{slower}, or lower {_option(run, 'value.learning_rate')}"
    if kind == "endings":
        return (
            f"raise {_option(run, 'dataset.max_new_tokens')}, or set reward.missing_eos_score below the usual rewards"
        )
    if kind == "length":
        return _sentence([*closer, slower], "read samples.jsonl: the reward may depend on length")
    if kind == "over-optimisation":
        shorter = [] if run.setting("rollout.iterations") == 1 else [f"lower {_option(run, 'rollout.iterations')}"]
        return _sentence([*closer, *shorter], "train a better reward model")
    if kind == "seeds":
        return _sentence([*closer, slower], "run more seeds")
    return _sentence([*closer, slower])


def _staying_close(run: RunRecord) -> list[str]:
    """What holds the policy to the initial one; ILQL has nothing of the kind."""
    if run.setting("algo.lam") is not None:
        return [f"raise {_option(run, 'algo.lam')}"]
    controller = run.setting("algo.kl.controller")
    if controller == "none":
        return ["set algo.kl.controller=adaptive"]
    if controller is None:
        return []
    lower = [f"lower {_option(run, 'algo.kl.target')}"] if controller == "adaptive" else []
    return [f"raise {_option(run, 'algo.kl.init_coef')}", *lower]


def _option(run: RunRecord, path: str) -> str:
    """`algo.lam (0.1)`."""
    value = run.setting(path)
    return path if value is None else f"{path} ({value})"


def _sentence(first: list[str], last: str | None = None) -> str:
    *before, end = [*first, *([last] if last else [])]
    return f"{', '.join(before)}, or {end}" if before else end
