"""The known architectures under the version of transformers that is installed: one test each says what moved.

Where one fails, runs go on by the model's own forward pass, and the tests of our layers' numbers are skipped.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from rlhf.models.families import FAMILIES, decoder_of
from rlhf.models.features import before_response, features_of, run_base
from rlhf.models.names import NAMES
from rlhf.models.network import Network
from rlhf.models.rotation import Rotation
from rlhf.sampling.choose import unfit
from tests import helpers
from tests.helpers import base_class, misfit, model_of, random_rollouts
from tests.sampling.test_fast import VARIANTS

TEXTS = features_of(random_rollouts([5, 1, 3, 2], [4, 6, 1, 2]))


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_our_layers_are_those_of_transformers(family):
    if line := misfit(base_class(family)):
        pytest.fail(f"{line}; mend rlhf/models/names.py or families.py", pytrace=False)


def test_every_known_class_has_an_example():
    assert {base_class(family) for family in helpers.FAMILIES} == set(NAMES) == set(FAMILIES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_angles_are_the_models_own_to_the_bit(variant):
    base: Any = model_of(VARIANTS[variant]()).base_model
    decoder = decoder_of(base)
    own = [module for name, module in base.named_modules() if name.endswith("rotary_emb")]
    if decoder.rotation is None:
        return
    if not own:
        pytest.skip("this version of transformers keeps its angles elsewhere")
    size = decoder.key_shape[1]
    for count in (1, 5, 33, 64):
        tables: list[Tensor] = [table[0] for table in own[0](torch.zeros(1), torch.arange(count)[None])]
        if "gptj" in variant:
            sin, cos = tables
            expected = Rotation.by_neighbours(cos, sin, size)
        else:
            expected = Rotation.by_halves(*tables, size)
        found = decoder.rotation(torch.arange(count))
        for table in ("cos", "up", "down"):
            assert torch.equal(getattr(found, table), getattr(expected, table))


PATHS = [
    (family, field.name)
    for family in helpers.FAMILIES
    for field in dataclasses.fields(NAMES[base_class(family)])
    if getattr(NAMES[base_class(family)], field.name)
]
"""Every name that is looked up, of each family."""


@pytest.mark.parametrize(("family", "field"), PATHS)
def test_a_module_that_moved_is_named_and_costs_speed_alone(family, field, monkeypatch):
    model, kind = model_of(helpers.FAMILIES[family]()), base_class(family)
    known: Any = getattr(NAMES[kind], field)
    moved = (*known[:-1], "moved.away") if isinstance(known, tuple) else "moved.away"
    monkeypatch.setitem(NAMES, kind, dataclasses.replace(NAMES[kind], **{field: moved}))
    run = Network(model.base_model)
    assert torch.equal(run(TEXTS), before_response(run_base(model.base_model, TEXTS, None), TEXTS))
    for line in (unfit(model), run.own_pass):
        assert line.endswith(f" of transformers {transformers.__version__} has no module moved.away")


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_a_config_that_lost_an_option_costs_speed_alone(family, monkeypatch):
    model, kind = model_of(helpers.FAMILIES[family]()), base_class(family)
    monkeypatch.setitem(FAMILIES, kind, dataclasses.replace(FAMILIES[kind], parallel=lambda config: config.moved))
    run = Network(model.base_model)
    assert torch.equal(run(TEXTS), before_response(run_base(model.base_model, TEXTS, None), TEXTS))
    for line in (unfit(model), run.own_pass):
        assert line.startswith(kind.removesuffix("Model")) and "moved" in line
