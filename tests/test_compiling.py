"""What compiling promises: embeddings within the limits, the same bits everywhere, or plainly none of it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor as inductor

from embedcache.sam import Encoder, random_weights
from embedcache.sam.compiling import why_not_compiled
from embedcache.sam.self_test import proof_image, self_test

CPU = torch.device("cpu")
COMPILER = pytest.mark.skipif(why_not_compiled(CPU) is not None, reason="no C++ compiler")

REPOSITORY = Path(__file__).resolve().parents[1]
COMPILED = {"compiled": True, "batch": 2}


@pytest.fixture(scope="module")
def weights():
    return random_weights("vit_tiny", 0)


def _digest(weights) -> str:
    said: list[str] = []
    encoder = Encoder(weights, device=CPU, precision="bf16", numerics=COMPILED, say=said.append)
    assert encoder.numerics["compiled"], said
    return hashlib.sha256(encoder(proof_image()).numpy().tobytes()).hexdigest()


@COMPILER
def test_a_compiled_encoder_passes_and_gives_the_same_bits_in_another_process(weights, tmp_path):
    said: list[str] = []
    encoder = Encoder(weights, device=CPU, precision="bf16", numerics=COMPILED, say=said.append)
    assert encoder.numerics["compiled"]
    assert self_test(encoder, weights, lambda line: None).passed
    embedding = encoder(proof_image())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(encoder(proof_image()), embedding)
    finally:
        torch.set_num_threads(threads)
    own = hashlib.sha256(embedding.numpy().tobytes()).hexdigest()
    code = (
        "from tests.test_compiling import _digest, random_weights\n"
        "print(_digest(random_weights('vit_tiny', 0)))"
    )
    environment = dict(os.environ)
    if os.environ.get("EMBEDCACHE_SLOW"):
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path)  # the kernels are compiled anew, too
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=True,
    )
    assert done.stdout.strip() == own
    assert len(said) == 1
    assert "Compiling" in said[0]
    with inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert encoder.halve(), "which needs other code"
    assert (encoder.numerics["batch"], encoder.numerics["compiled"]) == (1, False)
    assert ["anew" in said[1], "uncompiled" in said[2]] == [True, True]
    plain = Encoder(weights, device=CPU, precision="bf16")
    assert torch.equal(encoder(proof_image()), plain(proof_image()))


def test_without_a_compiler_the_encoder_runs_plainly_and_says_so_once(weights):
    said = []
    with inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        encoder = Encoder(weights, device=CPU, precision="bf16", numerics={"compiled": True}, say=said.append)
    assert encoder.numerics["compiled"] is False
    encoder(proof_image())
    assert len(said) == 1
    assert "uncompiled" in said[0]
    plain = Encoder(weights, device=CPU, precision="bf16")
    assert torch.equal(encoder(proof_image()), plain(proof_image()))
