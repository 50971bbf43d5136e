"""Attention and transformers, unchanged, in lanes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tuner.functions import LaneFunctions

CAUSAL = torch.ones(6, 6).tril().bool()
FORMS = {
    "plain": {},
    "causal": {"is_causal": True},
    "bool mask": {"attn_mask": CAUSAL},
    "float mask": {"attn_mask": torch.randn(6, 6, dtype=torch.float64)},
    "a query without keys": {"attn_mask": CAUSAL.clone().index_fill_(0, torch.tensor([2]), False)},
    "scale": {"scale": 0.3},
}
TRANSFORMERS = {
    "encoder layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
    "norm first": lambda: nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, norm_first=True, activation="gelu"
    ),
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
    ),
    "language model": lambda: CausalEncoder(),
    "encoder and decoder": lambda: Translator(),
    "attention with weights": lambda: SelfAttention(need_weights=True),
    "attention without weights": lambda: SelfAttention(need_weights=False),
    "extra keys": lambda: SelfAttention(add_bias_kv=True, add_zero_attn=True),
}


class CausalEncoder(nn.Module):
    """The mask is made in the forward pass and its kind left for torch to detect."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, inputs):
        mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1], dtype=inputs.dtype)
        return self.encoder(inputs, mask)


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)

    def forward(self, inputs):
        mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1], dtype=inputs.dtype)
        return self.transformer(inputs, inputs.flip(1), tgt_mask=mask)


class SelfAttention(nn.Module):
    def __init__(self, need_weights=True, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.need_weights = need_weights

    def forward(self, inputs):
        padding = torch.zeros(inputs.shape[:2], dtype=torch.bool)
        padding[:, -1] = True
        return self.attention(
            inputs, inputs, inputs, key_padding_mask=padding, need_weights=self.need_weights
        )


@pytest.mark.parametrize("form", FORMS)
def test_the_formula_equals_torchs_attention(form):
    query, key, value = (torch.randn(2, 3, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    expected = F.scaled_dot_product_attention(query, key, value, **FORMS[form])
    with LaneFunctions():
        actual = F.scaled_dot_product_attention(query, key, value, **FORMS[form])
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(each.square().sum(), (query, key, value)) for each in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_grouped_heads_and_dropout_equal_torchs_attention():
    query, key, value = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    results = []
    for context in (torch.enable_grad(), LaneFunctions()):
        torch.manual_seed(1)
        with context:
            results.append(F.scaled_dot_product_attention(query, key, value, dropout_p=0.4, enable_gqa=True))
    torch.testing.assert_close(results[1], results[0])


def test_mask_and_causal_together_are_refused_as_in_torch():
    query = torch.randn(1, 6, 4)
    with LaneFunctions(), pytest.raises(RuntimeError, match="attn_mask or is_causal"):
        F.scaled_dot_product_attention(query, query, query, attn_mask=CAUSAL, is_causal=True)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_lanes_equal_a_loop(name, assert_equals_loop):
    module = TRANSFORMERS[name]().double()
    assert_equals_loop(module, torch.randn(2, 3, 6, 8, dtype=torch.float64))


@pytest.mark.parametrize("name", ["encoder", "attention without weights"])
def test_lanes_in_evaluation_equal_a_loop(name, assert_equals_loop):
    module = TRANSFORMERS[name]().double().eval()
    assert_equals_loop(module, torch.randn(2, 3, 6, 8, dtype=torch.float64))


def test_evaluation_without_gradients_avoids_the_fast_path():
    layer = TRANSFORMERS["encoder layer"]().double().eval()
    inputs = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([layer(each) for each in inputs])
        with LaneFunctions():
            torch.testing.assert_close(torch.func.vmap(layer)(inputs), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_of_a_transformer_is_that_of_a_lone_training(batch_first, assert_equals_loop):
    module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=batch_first).double()
    assert_equals_loop(module, torch.randn(2, 3, 6, 8, dtype=torch.float64), seeds=(3, 4))


def test_dropout_of_a_transformer_is_drawn_per_seed(trace_lanes):
    lanes = trace_lanes(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2), torch.randn(2, 3, 6, 8))
    random = [node for node in lanes.graph.graph.nodes if "bernoulli" in str(node.target)]
    assert [str(node.target) for node in random] == ["aten.bernoulli.p"] * 4
    assert {node.meta["val"].shape[0] for node in random} == {2}
    assert lanes.run()[0].isfinite().all()


def test_torch_is_as_before_after_the_context():
    detect = nn.modules.transformer._detect_is_causal_mask
    attention = F.scaled_dot_product_attention
    with pytest.raises(KeyError), LaneFunctions():
        assert not torch.backends.mha.get_fastpath_enabled()
        with LaneFunctions():
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
        raise KeyError
    assert torch.backends.mha.get_fastpath_enabled()
    assert nn.modules.transformer._detect_is_causal_mask is detect
    assert F.scaled_dot_product_attention is attention
