"""What makes a search space, which studies it gives, and what is refused before anything is launched."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf.config.build import ConfigError
from sweeps.grid import Cell, Groups, cells, dimension
from sweeps.settings import DEFAULTS, study_settings
from tests.sweeps.studies import specs

GROUPS = Groups({"algo": ["apa", "awr", "ppo"], "model": ["tiny"]}, {"algo": "apa", "model": "tiny"})
PARSER = OverridesParser.create()
LR = "lr=tag(log,interval(1e-4,1e-2))"


def parsed(text: str):
    return PARSER.parse_override(f"x={text}")


@pytest.mark.parametrize(
    ("text", "shown", "middle", "points"),
    [
        ("interval(1,10)", "1.0 to 10.0", 5.5, None),
        ("tag(log,interval(1e-4,1e-2))", "0.0001 to 0.01, log", pytest.approx(1e-3), None),
        ("int(interval(1,4))", "1 to 4, integers", 3, [1, 2, 3, 4]),
        ("tag(int,log,interval(1,100))", "1 to 100, integers, log", 10, list(range(1, 101))),
        ("range(1,5)", "1 to 4, integers", 3, [1, 2, 3, 4]),
        ("range(8,0,-2)", "2 to 8, integers, step 2", 6, [2, 4, 6, 8]),
        # As one reads it: the end is left out although 0.1 + 3 * 0.3 is below 1 in binary.
        ("range(0.1,1,0.3)", "0.1 to 0.7, step 0.3", 0.4, [0.1, 0.4, 0.7]),
        ("tag(search,choice(16,'a b',true))", "one of 16, a\\ b, True", "a b", [16, "a b", True]),
    ],
)
def test_a_dimension(text, shown, middle, points):
    one = dimension(parsed(text))
    assert (str(one), one.middle, one.points) == (shown, middle, points)
    assert one.step != 0.3 or one.setting(0.1 + 2 * 0.3) == 0.7  # as one would write it


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("interval(2,1)", "holds fewer than two values"),
        ("tag(search,choice(a))", "holds fewer than two values"),
        ("tag(log,interval(0,1))", "a log scale begins above 0"),
        ("tag(int,interval(0.5,2))", "the ends of an integer interval are whole numbers"),
        ("tag(log,range(1,9,2))", "a log scale has no steps; use tag(log, interval(a, b))"),
        ("tag(lgo,interval(1,2))", "tag 'lgo' is not one of log, int, search"),
        ("tag(log,choice(1,2))", "tag 'log' is for numbers between two ends"),
    ],
)
def test_no_dimension(text, problem):
    with pytest.raises(ValueError, match=problem.replace("(", r"\(").replace(")", r"\)")):
        dimension(parsed(text))


def found(*typed: str, params: tuple[str, ...] = (), search: bool = False, **spaces: list[str]) -> list[Cell]:
    given = {label.replace("__", "="): PARSER.parse_overrides(texts) for label, texts in spaces.items()}
    return cells(PARSER.parse_overrides(list(params)), PARSER.parse_overrides(list(typed)), GROUPS, given, search)


def outline(cell: Cell) -> tuple[str, list[str], tuple[str, ...]]:
    return cell.name, [one.key for one in cell.dimensions], cell.seeds


def test_lists_are_studies_and_seeds_are_replicates():
    assert [outline(cell) for cell in found("algo=apa,ppo", "seed=0,100,0", LR, "steps=3")] == [
        ("algo=apa", ["lr"], ("0", "100")),
        ("algo=ppo", ["lr"], ("0", "100")),
    ]
    assert found("algo=apa,ppo", LR, "steps=3")[0].overrides == ["algo=apa", "steps=3"]


def test_a_range_is_searched_beside_a_search_space_and_a_grid_axis_elsewhere():
    assert [cell.name for cell in found("epochs=range(1,3)")] == ["epochs=1", "epochs=2"]
    assert outline(found("epochs=range(1,3)", LR, "seed=range(0,3)")[0]) == ("", ["epochs", "lr"], ("0", "1", "2"))
    assert outline(found("epochs=range(1,3)", search=True)[0]) == ("", ["epochs"], ())


def test_the_grid_is_the_product_of_all_lists_and_the_last_of_two_wins():
    assert [(cell.name, cell.overrides) for cell in found("seed=7", "algo=apa,ppo", "seed=range(2)", "steps=3")] == [
        ("seed=0 algo=apa", ["seed=0", "algo=apa", "steps=3"]),
        ("seed=0 algo=ppo", ["seed=0", "algo=ppo", "steps=3"]),
        ("seed=1 algo=apa", ["seed=1", "algo=apa", "steps=3"]),
        ("seed=1 algo=ppo", ["seed=1", "algo=ppo", "steps=3"]),
    ]


def test_spaces_of_grid_values():
    params = ("algo=apa,ppo,awr", "seed=0,1", LR)
    spaces = {"apa": ["lam=interval(0.1,1)"], "algo__ppo": ["kl=interval(0,1)", "clip=0.2"], "awr": ["lam=1,2", "lr=3"]}
    with pytest.raises(ConfigError) as error:
        found(params=params, **spaces)
    assert error.value.problems[0].startswith("algo=awr lam=1: no search space, while other cells have one")

    spaces["awr"] = ["lam=1,2"]
    tuned = found(params=params, **spaces)
    assert [outline(cell) for cell in tuned] == [
        ("algo=apa", ["lr", "lam"], ("0", "1")),
        ("algo=ppo", ["lr", "kl"], ("0", "1")),
        ("algo=awr lam=1", ["lr"], ("0", "1")),
        ("algo=awr lam=2", ["lr"], ("0", "1")),
    ]
    assert tuned[1].overrides == ["algo=ppo", "++clip=0.2"]
    # The command line wins over the file, and an algorithm that it leaves out is left out.
    narrowed = found(
        "algo=apa", "lam=0.5", "++lr=1e-3,1e-2", "seed=7", params=(*params, "steps=range(1,4)"), search=True, **spaces
    )
    assert [outline(cell) for cell in narrowed] == [("lr=0.001", ["steps"], ()), ("lr=0.01", ["steps"], ())]
    assert "lam=0.5" in narrowed[0].overrides and "seed=7" in narrowed[0].overrides


def test_lists_in_spaces_are_a_grid_of_each_value():
    grid = found(params=("algo=apa,ppo", "seed=0,1"), apa=["lam=1,2"], ppo=["kl=3"])
    assert [(cell.name, cell.overrides, cell.dimensions) for cell in grid] == [
        ("algo=apa seed=0 lam=1", ["algo=apa", "++seed=0", "++lam=1"], ()),
        ("algo=apa seed=0 lam=2", ["algo=apa", "++seed=0", "++lam=2"], ()),
        ("algo=apa seed=1 lam=1", ["algo=apa", "++seed=1", "++lam=1"], ()),
        ("algo=apa seed=1 lam=2", ["algo=apa", "++seed=1", "++lam=2"], ()),
        ("algo=ppo seed=0", ["algo=ppo", "++seed=0", "++kl=3"], ()),
        ("algo=ppo seed=1", ["algo=ppo", "++seed=1", "++kl=3"], ()),
    ]


@pytest.mark.parametrize(
    ("typed", "spaces", "problem"),
    [
        (("+sweep=frontier,tune",), {}, "sweep: one file at a time"),
        ((LR, "hardware.threads=tag(int,interval(1,2))"), {}, "hardware.threads: no sweep axis"),
        ((), {"apa": ["hardware.threads=1,2"]}, "hardware.threads: no sweep axis"),
        (("seed=interval(0,3)",), {}, "seed: no search dimension; a list (seed=0,100)"),
        (("algo=tag(search,choice(apa,ppo))",), {}, "algo: no search dimension; a list (algo=a,b)"),
        ((LR, "sweep_name=a,b"), {}, "sweep_name: no axis beside a search space"),
        ((LR,), {"ap": ["lam=1"]}, "hydra.sweeper.spaces.ap: nothing of that name; did you mean apa?"),
        ((LR,), {"data.seed__1": ["lam=1"]}, "hydra.sweeper.spaces.data.seed=1: nothing of that name; give an option"),
        ((LR,), {"apa": ["seed=1,2"]}, "hydra.sweeper.spaces.apa.seed: seeds stand beside the spaces"),
    ],
)
def test_what_is_no_axis(typed, spaces, problem):
    with pytest.raises(ConfigError) as error:
        found(*typed, **spaces)
    assert len(error.value.problems) == 1 and error.value.problems[0].startswith(problem)


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        (["algo.lam=interval(-1,2)"], "algo.lam: -1.0 is not above 0"),
        (["optimization.epochs=interval(1,3)"], "optimization.epochs: 2.0 is not an integer"),
        (["tracking.init_timeout=interval(1,3)"], "tracking.init_timeout: changes no result, so that there is nothing"),
        (["stage=sft", "sft.learning_rate=interval(1e-4,1e-3)"], "stage=sft: a search compares RL runs; stage=online"),
        (
            ["hardware=slurm", "hardware.slurm.wait=false", "algo.lam=interval(1,2)"],
            "hardware.slurm.wait: false leaves",
        ),
        (["algo=ppo", "algo.lam=interval(1,2)"], "algo.lam: no such option"),
    ],
)
def test_trials_that_could_not_run(typed, problem):
    (spec,) = specs(typed)
    (told,) = spec.problems()
    assert told.startswith(problem)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"n_trials": 0}, "hydra.sweeper.n_trials: 0 is below 1"),
        ({"sampler": "gp"}, "hydra.sweeper.sampler: 'gp' is not one of tpe, random, qmc, grid"),
        ({"kl_budget": 0}, "hydra.sweeper.kl_budget: 0.0 is not above 0"),
        ({"storage": True}, "hydra.sweeper.storage: True is not a text"),
        ({"pruner": "median", "objective": "reward_and_kl"}, "hydra.sweeper.pruner: objective=reward_and_kl has two"),
        ({"trials": 3}, "hydra.sweeper.trials: no such option; did you mean hydra.sweeper.n_trials?"),
    ],
)
def test_settings_that_cannot_be(changed, problem):
    with pytest.raises(ConfigError) as error:
        study_settings(DEFAULTS | changed)
    assert len(error.value.problems) == 1 and error.value.problems[0].startswith(problem)
