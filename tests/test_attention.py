"""What attention.py promises: every variant is SAM's attention, exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import InputError
from embedcache.sam.attention import FlexAttention, FoldedAttention, MaskAttention
from embedcache.sam.parts import build_encoder, modeling
from embedcache.sam.tiled_attention import TiledAttention
from embedcache.sam.vit import make_fast

VARIANTS = {
    "mask": MaskAttention,
    "folded": FoldedAttention,
    "tiled": TiledAttention,
    "flex": FlexAttention,
}
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def _stock(side: int, heads: int, head_dim: int, seed: int):
    from importlib import import_module

    attention = import_module(modeling.ImageEncoderViT.__module__).Attention
    stock = attention(heads * head_dim, heads, use_rel_pos=True, input_size=(side, side)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return stock.requires_grad_(False)


@pytest.mark.parametrize("variant", VARIANTS)
@given(
    batch=st.integers(1, 3),
    side=st.integers(1, 14),
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([1, 5, 8, 64, 80]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=20, deadline=None)
def test_a_variant_equals_stock_attention(variant, batch, side, heads, head_dim, seed):
    stock = _stock(side, heads, head_dim, seed)
    x = torch.randn(
        batch,
        side,
        side,
        heads * head_dim,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    want = stock(x)
    have = VARIANTS[variant](stock)(x)
    assert have.shape == want.shape
    assert float((have - want).abs().max()) <= 1e-12 * max(1.0, float(want.abs().max()))


def test_heads_taken_in_turns_give_the_same(monkeypatch):
    stock = _stock(side=6, heads=4, head_dim=8, seed=0)
    x = torch.randn(2, 6, 6, 32, dtype=torch.float64)
    whole = MaskAttention(stock)(x)
    monkeypatch.setattr("embedcache.sam.attention._MASK_BYTES", 1)
    assert torch.equal(MaskAttention(stock)(x), whole)


def test_the_relative_position_bias_is_not_forgotten():
    stock = _stock(side=7, heads=2, head_dim=8, seed=1)
    x = torch.randn(1, 7, 7, 16, dtype=torch.float64)
    for kind in VARIANTS.values():
        with_bias = kind(stock)(x)
        without = _stock(side=7, heads=2, head_dim=8, seed=1)
        without.rel_pos_h.zero_()
        without.rel_pos_w.zero_()
        assert float((kind(without)(x) - with_bias).abs().max()) > 1e-3


def test_folded_columns_fit_fused_kernels():
    for side, head_dim in ((64, 64), (14, 64), (14, 80)):
        folded = FoldedAttention(_stock(side, 1, head_dim, 0))
        assert (head_dim + folded.key_columns.shape[1]) % 8 == 0


def test_an_unknown_variant_is_refused():
    with pytest.raises(InputError, match="flash"):
        make_fast(build_encoder("vit_tiny"), "flash", revision=2)
