"""Words of the command line: flags in any place, texts that arrive as typed."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf.config import ALGO_CONFIGS
from rlhf.config.build import ConfigError
from sweeps.command_line import as_typed, config_folders, flags_first, refuse_unknown, without_null_groups
from sweeps.sources import typed_paths
from tests.config.composed import CONF

PARSER = OverridesParser.create()
TEXTS = [
    *("RUNS/lr=1e-4", "a b", "x ", " x", "a  b", "it's", 'say "hi"', "日本", "a\nb", "\t", "="),
    *("007", "1_000", "1e-4", "1.0", "+1", "inf", "nan", "0x10", "true", "on", "yes", "None", "2026-11-30", "1e400"),
    *("run(1)", "run[1]", "[x]", "{x}", "(", ")", "][", "}{", "choice", "a:b", "a#b", "#x", "&x", "!x", "%", "*", "?"),
    *(
        "~/x",
        "$HOME",
        "a\\b",
        "\\n\\nHuman:",
        "<|endoftext|>",
        "postgresql://me:pa=ss@host/db",
        "@a",
        "a@b",
        ";",
        "`x`",
    ),
]


def value(override: str) -> object:
    return PARSER.parse_override(override).value()


@pytest.mark.parametrize("key", ["model.path", "hydra.sweeper.storage"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_arrives_as_typed(key, text):
    for multirun in (False, True):
        (override,) = as_typed([f"{key}={text}"], PARSER, multirun)
        assert value(override) == text


@pytest.mark.parametrize("typed", ['model.path="a,b"', "model.path='a=b'", 'model.path=" x"'])
def test_what_the_user_has_quoted_is_left_alone(typed):
    assert as_typed([typed], PARSER, False) == [typed]


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        ("[a,b]", ["a", "b"]),
        ("[007,true]", ["007", "true"]),
        ("[nice=100]", ["nice=100"]),
        ("[module load cuda]", ["module load cuda"]),
        ("[Human:, User:]", ["Human:", "User:"]),
        ('["a,b",c]', ["a,b", "c"]),
        ("[a(b)]", ["a(b)"]),
        ("[]", []),
    ],
)
def test_a_list_of_texts_arrives_as_typed(typed, texts):
    (override,) = as_typed([f"dataset.stop_strings={typed}"], PARSER, False)
    assert value(override) == texts


@pytest.mark.parametrize(
    ("typed", "elements"),
    [
        ("sweep_name=007,1e-4", ["007", "1e-4"]),
        ("model.path=a=1,b=2", ["a=1", "b=2"]),
        ("model.path=a,b", ["a", "b"]),
        ("seed=0,1", ["0", "1"]),
    ],
)
def test_a_list_of_values_is_swept_as_typed(typed, elements):
    parsed = PARSER.parse_override(as_typed([typed], PARSER, True)[0])
    assert [text.strip('"') for text in parsed.sweep_string_iterator()] == elements


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("model.path=a,b", "model.path: several values need -m; one text with commas is typed"),
        ("reward.prefix=a\\ b\\(", "reward.prefix: Hydra takes backslashes out; type"),
        ('dataset.stop_strings=["a",b=c]', "dataset.stop_strings: "),
        (
            "hardware.slurm.setup=[${HOME}]",
            "hardware.slurm.setup: ${HOME} stands for an option HOME, and there is none",
        ),
        ("seed=(1", "seed: Hydra cannot read '(1'; as one text it is typed"),
        ("seed", "seed: not of the form key=value"),
    ],
)
def test_what_cannot_be_told_is_refused_with_what_to_type(typed, line):
    with pytest.raises(ConfigError) as error:
        as_typed([typed], PARSER, False)
    (problem,) = error.value.problems
    assert problem.startswith(line)
    for form in (
        word for word in shlex.split(problem.replace(";", " ").replace(", ", " ")) if word.startswith("model.path=")
    ):
        assert value(as_typed([form], PARSER, False)[0]) == "a,b"


def test_interpolations_of_options_and_of_the_environment_pass():
    words = ["sweep_name=${algo.name}", "output_dir=${oc.env:HOME}/runs", "reward.prefix=\\${HOME}"]
    assert as_typed(words, PARSER, False) == words


def test_flags_may_stand_anywhere():
    assert flags_first(["algo=apa", "-m", "seed=0,1"]) == (["-m"], ["algo=apa", "seed=0,1"])
    assert flags_first(["seed=1", "--config-dir", "mine"]) == (["--config-dir", "mine"], ["seed=1"])
    assert flags_first(["--cfg", "job", "-p", "algo", "~debug"]) == (["--cfg", "job", "-p", "algo"], ["~debug"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--algo", "ppo"], "--algo: no such flag; options are typed without dashes: algo=ppo"),
        (["--num-epochs", "3", "seed=1"], "--num-epochs: no such flag; options are typed without dashes: num_epochs=3"),
        (["--bf16"], "--bf16: no such flag; options are typed without dashes: bf16=..."),
        (["-m", "--cfg", "job"], "--cfg: shows one run; leave -m out"),
    ],
)
def test_options_with_dashes_are_refused_with_the_form_to_type(words, line):
    with pytest.raises(ConfigError) as error:
        flags_first(words)
    assert error.value.problems == [line]


def test_the_options_that_overrides_set():
    words = ["algo=ppo", "algo.kl={target: 3, horizon: 9}", "++optimization.betas.0=0.8", "~debug", "hydra.job.name=x"]
    assert typed_paths(words) == ["algo", "algo.kl.target", "algo.kl.horizon", "optimization.betas"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ("algo.lamda=1", "algo.lamda: no such option; did you mean algo.lam?"),
        (
            "algo=ppo algo.lam=1",
            "algo.lam: no such option of algo=ppo; leave it out, or use algo=apa or algo=awr",
        ),
        (
            "algo=apa,ppo algo.lam=1,2",
            "algo.lam: no such option of algo=ppo; leave it out, or run algo=apa in a",
        ),
        ("alg=ppo", "alg: no such option; did you mean algo?"),
        ("model=tiny,smol", "model=smol: no such option; there are"),
        ("+sweep=nothing", "sweep=nothing: no such option; there are"),
        ("hydra/launcher=basic", "hydra/launcher=basic: only this project's own, harness; leave it out"),
        ("hydra.sweeper.ntrials=3", "hydra.sweeper.ntrials: no such option; did you mean hydra.sweeper.n_trials?"),
        ("lr=1", "lr: no such option; did you mean optimization.learning_rate or "),
        ("kl_coef=1", "kl_coef: no such option; did you mean algo.kl.init_coef (algo=ppo or "),
        ("num_epochs=1", "num_epochs: no such option; did you mean optimization.epochs?"),
        ("model_name_or_path=gpt2", "model_name_or_path: no such option; did you mean model.path?"),
        ("output=a", "output: no such option; did you mean output_dir?"),
        ("algo=apo", "algo=apo: no such option; did you mean apa or "),
        ("+algo=ppo", "+algo=ppo: type algo=ppo"),
        ("++dataset=sums", "++dataset=sums: type dataset=sums"),
        ("~algo", "~algo: a run has one; type algo=NAME"),
        ("experiment=hh_1b algo.ratio_clip=1", "algo.ratio_clip: no such option of algo=apa"),
        ("algo=a2c", f"algo=a2c: no such option; there are {', '.join(sorted(ALGO_CONFIGS))}"),
        ("model=null", "model=null: a run has one; there are"),
        (f"{'a' * 5000}=1", f"{'a' * 97}"),
    ],
)
def test_a_name_that_is_not_there_is_refused(overrides, problem):
    with pytest.raises(ConfigError) as error:
        refuse_unknown(overrides.split(), [CONF])
    assert len(error.value.problems) == 1 and error.value.problems[0].startswith(problem)


@pytest.mark.parametrize(
    "overrides",
    [
        "algo=apa,awr algo.lam=0.1,1",
        "algo=glob(*) seed=range(3)",
        "algo.kl.target=3 algo=ppo",
        "experiment=null debug=one_step",
        "debug=[one_step,overfit]",
        "hydra.sweeper.params.x=1 hydra/launcher=harness +hydra.job.env_set.A=b",
        "experiment=hh_1b algo.lam=1",
        "~debug optimization.betas.0=0.8",
        "algo.kl={target:3} algo=ppo",
    ],
)
def test_names_that_pass(overrides):
    refuse_unknown(overrides.split(), [CONF])


def test_a_file_that_would_never_be_opened_is_refused(tmp_path):
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "apa.yaml").write_text("name: apa\n")
    with pytest.raises(ConfigError) as error:
        refuse_unknown([], config_folders(["--config-dir", str(tmp_path)], [], CONF))
    assert error.value.problems == [
        f"{tmp_path}/algo/apa.yaml: conf/algo/apa.yaml is found before it; give it another name"
    ]


def test_folders_of_the_command_line(tmp_path):
    assert config_folders([f"--config-dir={tmp_path}"], [], CONF) == [CONF, tmp_path]
    assert config_folders([], [f"hydra.searchpath=[file://{tmp_path}]"], CONF) == [CONF, tmp_path]
    with pytest.raises(ConfigError, match="--config-dir: nowhere is no folder"):
        config_folders(["-cd", "nowhere"], [], CONF)


def test_a_null_group_is_none_or_refused():
    words = ["debug=null", "experiment=null", "seed=1", "tuned=null", "algo=null"]
    assert without_null_groups(words, [CONF]) == ["seed=1", "~tuned@_global_", "~tuned", "algo=null"]
    with pytest.raises(ConfigError) as error:
        refuse_unknown(["algo=null"], [CONF])
    assert error.value.problems == [f"algo=null: a run has one; there are {', '.join(sorted(ALGO_CONFIGS))}"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("experiment=hh1b", r"no such option; did you mean hh_1b\? There are .*, with FOLDER/experiment/hh1b\.yaml"),
        ("experiment=other", r"no such option; there are .*, with FOLDER/experiment/other\.yaml"),
        ("model=gpt2", r"no such option; there are .*: model=hub model\.path=owner/gpt2"),
        ("model=me/gpt2", r"no such option; there are .*: model=hub model\.path=me/gpt2"),
    ],
)
def test_a_choice_that_no_group_has_is_told_what_was_meant_and_how_to_bring_it(typed, said):
    with pytest.raises(ConfigError, match=f"^{typed}: {said}$"):
        refuse_unknown([typed], [CONF])
