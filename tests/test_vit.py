"""What vit.py promises: SAM's image encoder, whatever its size, its weights and its variant."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from embedcache.sam.parts import modeling
from embedcache.sam.vit import VARIANTS, make_fast

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def _stock(side=8, window=3, width=32, heads=2, channels=32, seed=0):
    """segment-anything's encoder for images of 16 · side, one block with windows and one without."""
    vit = modeling.ImageEncoderViT(
        img_size=16 * side,
        embed_dim=width,
        depth=2,
        num_heads=heads,
        out_chans=channels,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=(1,),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            spread = 0.3 if "rel_pos" in name else 2 * parameter.shape[-1] ** -0.5
            if parameter.ndim == 1:
                spread = 0.2
            parameter.mul_(0 if "norm" not in name else 1)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return vit.requires_grad_(False).eval()


def _fast(stock, variant, dtype=torch.float32, revision=2):
    model = copy.deepcopy(stock)
    make_fast(model, variant, revision)
    return model.to(dtype)


def _images(count, side, seed=1):
    return torch.randn(count, 3, 16 * side, 16 * side, generator=torch.Generator().manual_seed(seed))


def _distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("variant", VARIANTS)
@given(
    side=st.integers(1, 12),
    window=st.integers(1, 5),
    heads=st.integers(1, 3),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    revision=st.sampled_from([1, 2]),
)
@settings(max_examples=12, deadline=None)
def test_float32_is_segment_anything_for_any_size_window_and_batch(
    variant, side, window, heads, batch, seed, revision
):
    stock = _stock(side, window, 16 * heads, heads, seed=seed)
    images = _images(batch, side, seed)
    with torch.inference_mode():
        have, want = _fast(stock, variant, revision=revision)(images), stock(images)
    assert have.shape == want.shape
    assert _distance(have, want) <= 2e-6


@pytest.mark.parametrize("variant", ["mask", "folded", "tiled"])
@given(side=st.sampled_from([17, 32]), batch=st.integers(1, 2), seed=st.integers(0, 2**31))
@settings(max_examples=4, deadline=None)
def test_bfloat16_is_as_near_to_float32_as_segment_anything_in_bfloat16(variant, side, batch, seed):
    stock = _stock(side, 14, 192, 3, 256, seed)
    images = _images(batch, side, seed)
    with torch.inference_mode():
        want = stock(images)
        own = _fast(stock, variant, torch.bfloat16)(images.bfloat16())
        other = copy.deepcopy(stock).bfloat16()(images.bfloat16())
    assert 0 < _distance(own, want) <= 1.2 * _distance(other, want)


def _with_outliers(stock):
    """As in trained ViTs: a few channels of the residual stream, and of the neck, are far larger than the rest."""
    with torch.no_grad():
        for channel in (5, 77, 150):
            stock.pos_embed[..., channel] *= 30
            stock.patch_embed.proj.weight[channel] *= 30
            for block in stock.blocks:
                block.mlp.lin2.weight[channel] *= 30
                block.attn.proj.weight[channel] *= 30
        stock.neck[0].weight[[3, 200]] *= 30
    return stock


@pytest.mark.parametrize("variant", ["mask", "folded", "tiled"])
def test_outlier_channels_that_overflow_half_precision_do_no_harm(variant):
    stock = _with_outliers(_stock(17, 14, 192, 3, 256))
    images = _images(1, 17)
    with torch.inference_mode():
        want = stock(images)
        half = copy.deepcopy(stock).half()(images.half())
        own = _fast(stock, variant, torch.bfloat16)(images.bfloat16())
        other = copy.deepcopy(stock).bfloat16()(images.bfloat16())
    assert not half.isfinite().all()
    assert own.isfinite().all()
    assert 0 < _distance(own, want) <= 1.2 * _distance(other, want)


def test_a_padded_window_keeps_its_padding_in_the_softmax():
    """The weight on padding is what an encoder that masked it would not have."""
    stock = _stock(side=4, window=3)
    images = _images(1, 4)
    other = copy.deepcopy(stock)
    other.blocks[0].attn.qkv.bias += 1.0  # changes what padding's keys and values are
    with torch.inference_mode():
        want = other(images)
        assert _distance(stock(images), want) > 1e-3
        for variant in VARIANTS:
            assert _distance(_fast(other, variant)(images), want) <= 2e-6
