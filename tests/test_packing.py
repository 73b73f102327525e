"""Several texts in one row: packed by hand, and the same loss as padded texts in every architecture."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig

from rlhf.batches import DemonstrationBatch, pad
from rlhf.models.loading import ModelError
from rlhf.stages.sft import PackedBatch, check_packing, pack, response_cross_entropy
from tests.helpers import ARCHITECTURES, VOCAB, tiny_model


def demonstrations(lengths: list[int], prompts: list[int]) -> DemonstrationBatch:
    """Texts of random tokens; the loss is on what follows the prompt."""
    draws = torch.Generator().manual_seed(0)
    rows = [torch.randint(2, VOCAB, (length,), generator=draws).tolist() for length in lengths]
    ids, mask = pad(rows, 0, left=False)
    return DemonstrationBatch(ids, mask, mask & (torch.arange(ids.shape[1]) >= torch.tensor(prompts)[:, None]))


def test_texts_go_where_they_first_fit_the_longest_first():
    batch = DemonstrationBatch(
        input_ids=torch.tensor([[11, 12, 0, 0], [21, 22, 23, 24], [31, 32, 33, 0], [41, 0, 0, 0]]),
        mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool),
        loss_mask=torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool),
    )
    packed = pack(batch, 7)
    # By length: 4, 3, 2, 1. The second fits behind the first, the third begins a row, the fourth joins it.
    assert packed.input_ids.tolist() == [[21, 22, 23, 24, 31, 32, 33], [11, 12, 41, 0, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 0, 0, 1, 2, 3]]
    assert packed.loss_mask.int().tolist() == [[0, 0, 1, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0, 0]]
    narrow = pack(batch, 5)  # no row is wider than its texts make it
    assert narrow.input_ids.tolist() == [[21, 22, 23, 24, 41], [31, 32, 33, 11, 12]]
    assert pack(batch, 100).input_ids.shape == (1, 10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_and_its_gradients_are_those_of_padded_texts(architecture):
    model = tiny_model(architecture)
    check_packing(model)
    batch = demonstrations([9, 3, 5, 2, 12, 6, 8], [2, 1, 4, 1, 3, 1, 5])
    packed = pack(batch, 20)
    assert len(packed.input_ids) < 4
    losses, gradients = [], []
    for inputs in (batch, packed):
        model.zero_grad()
        loss = response_cross_entropy(model, inputs)
        loss.backward()
        losses.append(loss.detach())
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-3)
    shuffled = PackedBatch(
        packed.input_ids,
        torch.arange(packed.input_ids.shape[1]).expand_as(packed.positions),
        packed.loss_mask & (torch.arange(packed.input_ids.shape[1]) > 0),
    )
    assert (response_cross_entropy(model, shuffled) - losses[0]).abs() > 0.1  # texts that see each other differ


def test_a_sliding_window_is_kept_in_each_text():
    settings = ARCHITECTURES["qwen2"]()
    settings.layer_types = ["full_attention", "sliding_attention", "sliding_attention"]
    settings.sliding_window = 2
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings).eval()
    batch = demonstrations([9, 3, 5, 2], [2, 1, 4, 1])
    with torch.no_grad():
        expected, got = (response_cross_entropy(model, inputs) for inputs in (batch, pack(batch, 20)))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_an_architecture_whose_positions_come_from_its_mask_is_refused():
    """Bloom has no position ids: its bias follows the attention mask."""
    settings = BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2, pad_token_id=0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings).eval()
    with pytest.raises(ModelError, match=r"^sft\.packing: BloomForCausalLM .*; use sft\.packing=false$"):
        check_packing(model)
