"""What tuning promises: wishes are obeyed, short work is not compiled, and every decision is complete and said."""

import pytest
import torch
import torch._inductor as inductor

from embedcache.errors import InputError
from embedcache.sam import Encoder, random_weights
from embedcache.sam.tuning import Tuning, tune

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights():
    return random_weights("vit_tiny", 0)


def _tune(weights, tiles=10, precision="bf16", said=None, **wishes):
    say = (said if said is not None else []).append
    return tune(weights, device=CPU, precision=precision, tiles_to_do=tiles, wishes=Tuning(**wishes), say=say)


def test_what_is_decided_is_what_an_encoder_takes_as_it_is(weights):
    for precision in ("bf16", "fp32"):
        decided = _tune(weights, precision=precision)
        assert Encoder(weights, device=CPU, precision=precision, numerics=decided).numerics == decided


def test_wishes_are_obeyed(weights):
    threads = torch.get_num_threads()
    try:
        decided = _tune(weights, precision="fp32", attention="mask", batch=3, threads=2, compile="off")
        assert (decided["attention"], decided["batch"], decided["threads"]) == ("mask", 3, 2)
        assert decided["compiled"] is False
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(InputError, match="batch"):
        _tune(weights, batch=0)


def test_few_images_are_neither_measured_nor_compiled(weights):
    said = []
    assert _tune(weights, tiles=10, said=said)["compiled"] is False
    assert said == []


def test_work_too_short_for_compiling_is_measured_and_said(weights):
    said = []
    assert _tune(weights, tiles=100, said=said)["compiled"] is False
    assert len(said) == 1
    assert "100 images" in said[0]


def test_compiling_that_is_wished_but_impossible_is_said(weights):
    said = []
    with inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert _tune(weights, compile="on", said=said)["compiled"] is False
    assert "no C++ compiler" in said[0]


@pytest.mark.parametrize("wished", ["on", "auto"])
def test_compiling_is_decided_by_wish_or_by_time(weights, wished):
    """However long the work: segment-anything's own code is compiled only when that is wished."""
    decided = _tune(weights, tiles=10**9, attention="stock", compile=wished)
    assert decided["compiled"] is (wished == "on")
