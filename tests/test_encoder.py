"""What the encoder promises: SAM's embeddings, in float32 or bfloat16, whatever else is in the batch."""

import copy
import os

import pytest
import torch

from embedcache.errors import InputError
from embedcache.sam import Encoder, is_out_of_memory, random_weights, resolve_device, resolve_precision
from embedcache.sam.device import cpu_has_matrix_units
from embedcache.sam.parts import build_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights():
    return random_weights("vit_tiny", 0)


@pytest.fixture(scope="module")
def images():
    """Noise, and a smooth image with zero padding as SAM makes it."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 1024), torch.linspace(0, 1, 1024), indexing="ij")
    smooth = torch.stack([torch.sin(9 * x), torch.cos(7 * y), x * y])
    smooth[:, 700:] = 0
    noise = torch.randn(3, 1024, 1024, generator=torch.Generator().manual_seed(1))
    return torch.stack([noise, smooth])


@pytest.fixture(scope="module")
def stock(weights):
    """segment-anything's own encoder."""
    model = build_encoder("vit_tiny")
    model.load_state_dict(
        {name.removeprefix("image_encoder."): value for name, value in weights.encoder_state().items()},
        assign=True,
    )
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def wanted(stock, images):
    with torch.inference_mode():
        return torch.cat([stock(image[None]) for image in images])


@pytest.fixture(scope="module")
def wanted_bf16(stock, images):
    model = copy.deepcopy(stock).bfloat16()
    with torch.inference_mode():
        return torch.cat([model(image[None].bfloat16()).float() for image in images])


def _distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def _encoder(weights, precision="fp32", **numerics):
    return Encoder(weights, device=CPU, precision=precision, numerics=numerics)


@pytest.mark.parametrize("attention", ["mask", "folded", "tiled", "stock"])
def test_float32_embeddings_are_those_of_segment_anything(weights, images, wanted, attention):
    encoder = _encoder(weights, attention=attention)
    for image, want in zip(images, wanted, strict=True):
        assert _distance(encoder(image[None])[0], want) <= 2e-6


@pytest.mark.parametrize("attention", ["mask", "folded", "tiled"])
def test_bfloat16_is_as_near_to_float32_as_segment_anything_in_bfloat16(
    weights, images, wanted, wanted_bf16, attention
):
    encoder = _encoder(weights, "bf16", attention=attention)
    for image, want, other in zip(images, wanted, wanted_bf16, strict=True):
        own = encoder(image[None])[0]
        assert own.dtype == torch.float32
        assert 0 < _distance(own, want) <= 1.2 * _distance(other, want)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_embedding_depends_on_its_neighbours_or_its_place(weights, images, precision):
    encoder = _encoder(weights, precision, batch=2)
    together = encoder(images)
    assert torch.equal(encoder(images.flip(0)).flip(0), together)
    assert torch.equal(encoder(images[1:])[0], together[1])  # padded to a batch of two


def test_images_are_counted_without_the_padding(weights, images):
    encoder = _encoder(weights, batch=2)
    encoder(torch.cat([images, images[:1]]))
    assert encoder.calls == 3
    assert encoder(images[:0]).shape == (0, 256, 64, 64)
    assert encoder.calls == 3


def test_embeddings_can_take_part_in_training(weights, images):
    embedding = _encoder(weights)(images[:1])
    assert embedding.shape == (1, 256, 64, 64)
    assert not embedding.is_inference()
    assert not embedding.requires_grad
    scale = torch.ones(1, requires_grad=True)
    (embedding * scale).sum().backward()
    assert scale.grad is not None


def test_loading_leaves_the_weights_as_they_were(weights, images):
    before = weights.encoder_digest
    _encoder(weights, "bf16")(images[:1])
    assert type(weights)(weights.model_type, weights.source, weights.state, True).encoder_digest == before


def test_given_numerics_are_obeyed_and_told(weights):
    threads = torch.get_num_threads()
    try:
        encoder = _encoder(weights, attention="folded", batch=3, threads=2)
        assert torch.get_num_threads() == 2
        assert encoder.numerics == {
            "attention": "folded",
            "compiled": False,
            "batch": 3,
            "threads": 2,
            "device": "cpu",
            "torch": torch.__version__.partition("+")[0],
            "revision": 2,
        }
        assert encoder.batch == 3
        again = Encoder(weights, device=CPU, precision="fp32", numerics=encoder.numerics)
        assert again.numerics == encoder.numerics
    finally:
        torch.set_num_threads(threads)


def test_numerics_recorded_before_there_were_revisions_stay_as_they_are(weights, images):
    recorded = _encoder(weights, "bf16", attention="folded").numerics
    del recorded["revision"]
    encoder = Encoder(weights, device=CPU, precision="bf16", numerics=recorded)
    assert encoder.numerics == recorded
    newer = _encoder(weights, "bf16", attention="folded")
    assert 0 < _distance(encoder(images[:1]), newer(images[:1])) <= 2e-2  # other bits, same meaning


@pytest.mark.parametrize(
    ("precision", "attention"), [("fp32", "tiled"), ("bf16", "folded" if cpu_has_matrix_units() else "tiled")]
)
def test_the_default_numerics_suit_the_cpu(weights, precision, attention):
    encoder = _encoder(weights, precision)
    assert (encoder.numerics["attention"], encoder.batch) == (attention, 1)
    assert encoder.numerics["threads"] == (torch.get_num_threads() if precision == "fp32" else 0)


def test_bfloat16_on_a_cpu_gives_the_same_bits_for_any_number_of_threads(weights, images):
    before = torch.get_num_threads()
    encoder, found = _encoder(weights, "bf16"), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(encoder(images[:1]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


def test_after_running_out_of_memory_the_batch_is_halved(weights, images):
    encoder = _encoder(weights, "bf16", batch=3)
    whole = encoder(images)
    assert encoder.halve()
    assert (encoder.batch, encoder.numerics["batch"]) == (1, 1)
    assert torch.equal(encoder(images), whole)
    assert not encoder.halve()
    assert encoder.batch == 1


def test_errors_that_mean_out_of_memory_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    "numerics", [{"batch": 0}, {"batch": 1.5}, {"threads": -1}, {"attention": "flash"}, {"compiled": "yes"}]
)
def test_impossible_numerics_are_refused(weights, numerics):
    with pytest.raises(InputError):
        _encoder(weights, **numerics)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.zeros(3, 1024, 1024),
        torch.zeros(1, 3, 512, 512),
        torch.zeros(1, 3, 1024, 1024, dtype=torch.uint8),
    ],
)
def test_other_inputs_are_refused(weights, inputs):
    with pytest.raises(InputError, match="Encoder input"):
        _encoder(weights)(inputs)


def test_devices_are_resolved_by_name():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    for text in ("tpu", "cpu:1", "cuda:x", "cuda:99"):
        with pytest.raises(InputError, match=text):
            resolve_device(text)


def test_precisions_are_resolved_by_name():
    assert resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", CPU) in ("fp32", "bf16")
    with pytest.raises(InputError, match="fp16"):
        resolve_precision("fp16", CPU)


@pytest.mark.skipif(not os.environ.get("EMBEDCACHE_SLOW"), reason="builds vit_b; set EMBEDCACHE_SLOW=1")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vit_b_is_that_of_segment_anything(images, precision):
    big = random_weights("vit_b", 0)
    want = _encoder(big, attention="stock")(images[:1])
    have = _encoder(big, precision)(images[:1])
    limit = (
        2e-6
        if precision == "fp32"
        else 1.2 * _distance(_encoder(big, "bf16", attention="stock")(images[:1]), want)
    )
    assert _distance(have, want) <= limit


def test_embeddings_may_stay_on_the_device(weights, images):
    encoder = _encoder(weights, batch=2)
    embeddings = encoder.on_device(images)
    assert (embeddings.device, embeddings.dtype) == (encoder.device, torch.float32)
    assert not embeddings.is_inference()
    assert torch.equal(embeddings, encoder(images))
    assert encoder.on_device(images[:0]).shape == (0, 256, 64, 64)
    assert encoder.calls == 2 * len(images)
