"""Words of the command line: flags in any place, texts that arrive as typed."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf.config.build import ConfigError
from sweeps.command_line import as_typed, flags_first
from sweeps.sources import typed_paths

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


@pytest.mark.parametrize("key", ["model.path", "reward.prefix", "sweep_name", "hydra.sweeper.storage"])
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
        (["--algo=ppo"], "--algo: no such flag; options are typed without dashes: algo=ppo"),
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
