"""However the decoder computes, it computes what segment-anything computes for each prompt alone."""

import functools
import itertools

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from embedcache.errors import InputError
from embedcache.sam import Decoder, Prompts
from embedcache.sam.decoding.way import CPU_PROMPTS_PER_CALL, MOST_ABSORBED_TOKENS, STOCK, Way, choose_way

WAYS = [
    Way(*each)
    for each in itertools.product([None, 1], [False, True], [False, True], ["stock", "tokens"], [None, 2])
]
CPU = torch.device("cpu")


@functools.cache
def exact():
    """A decoder in float64; segment-anything casts positions to float32, whose rounding depends on the batch."""
    decoder = Decoder.random(3).double()
    positions = decoder.prompt_encoder.pe_layer
    positions._pe_encoding = lambda coords: type(positions)._pe_encoding(positions, coords.double())
    return decoder


def embeddings_of(batch, seed=0, dtype=torch.float64):
    return torch.randn(batch, 256, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mixed_prompts(counts, seed, *, points=0, boxes=False, masks=False, ragged=False):
    """Prompts whose rows differ where ``ragged``: in points, also none, and in having a box."""
    generator = torch.Generator().manual_seed(seed)
    queries = sum(counts)
    corners = torch.rand(queries, 2, 2, generator=generator) * 1024
    labels = torch.randint(-1, 2, (queries, points), generator=generator).int()
    fewer = torch.randint(0, points + 1, (queries,), generator=generator)
    with_box = torch.rand(queries, generator=generator) < 0.5
    with_box[0], fewer[-1] = True, points  # what no row has is left out, not given
    return Prompts(
        tuple(counts),
        point_coords=torch.rand(queries, points, 2, generator=generator) * 1024 if points else None,
        point_labels=labels if points else None,
        boxes=corners.sort(dim=1).values.reshape(queries, 4) if boxes else None,
        mask_input=torch.randn(queries, 1, 256, 256, generator=generator) if masks else None,
        point_counts=fewer if points and ragged else None,
        has_box=with_box if boxes and ragged else None,
    )


def stock_row_by_row(decoder, embeddings, prompts):
    """segment-anything's own modules, one prompt a call, all four masks."""
    rows, dtype = [], embeddings.dtype
    images = [image for image, count in enumerate(prompts.counts) for _ in range(count)]
    for row, image in enumerate(images):
        points = boxes = None
        if prompts.point_coords is not None:
            most = prompts.point_coords.shape[1]
            count = most if prompts.point_counts is None else int(prompts.point_counts[row])
            if count:
                points = (prompts.point_coords[row, None, :count], prompts.point_labels[row, None, :count])
        if prompts.boxes is not None and (prompts.has_box is None or prompts.has_box[row]):
            boxes = prompts.boxes[row, None]
        masks = None if prompts.mask_input is None else prompts.mask_input[row, None].to(dtype)
        sparse, dense = decoder.prompt_encoder(points=points, boxes=boxes, masks=masks)
        rows.append(
            decoder.mask_decoder.predict_masks(
                image_embeddings=embeddings[image, None],
                image_pe=decoder.prompt_encoder.get_dense_pe().to(dtype),
                sparse_prompt_embeddings=sparse.to(dtype),
                dense_prompt_embeddings=dense,
            )
        )
    return tuple(torch.cat(values) for values in zip(*rows, strict=True))


def gradients(decoder, embeddings, output):
    masks, ious = output
    weight = torch.linspace(-1, 1, masks.numel(), dtype=masks.dtype).view_as(masks)
    loss = (masks * weight).mean() + (masks**2).mean() + (ious**2).sum()
    names, parameters = zip(*decoder.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, [embeddings, *parameters], allow_unused=True)
    return dict(zip(["embeddings", *names], found, strict=True))


def compare(decoder, way, embeddings, prompts, multimask, *, outputs, relative, least):
    chosen = {None: slice(None), True: slice(1, None), False: slice(0, 1)}[multimask]
    decoder.way = way
    try:
        have = decoder(embeddings, prompts, multimask_output=multimask)
    finally:
        decoder.way = None
    want = [values[:, chosen] for values in stock_row_by_row(decoder, embeddings, prompts)]
    for ours, theirs in zip(have, want, strict=True):
        assert ours.shape == theirs.shape
        limit = outputs * max(1.0, float(theirs.detach().abs().max()))
        assert float((ours - theirs).detach().abs().max()) <= limit
    theirs = gradients(decoder, embeddings, want)
    for name, ours in gradients(decoder, embeddings, have).items():
        if theirs[name] is None:
            assert ours is None, name
            continue
        assert ours is not None, name
        scale = max(least, float(theirs[name].abs().max()))
        assert float((ours - theirs[name]).abs().max()) <= relative * scale, name


@given(
    way=st.sampled_from(WAYS),
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda counts: sum(counts) <= 3),
    points=st.sampled_from([0, 1, 3, 10, 11]),
    boxes=st.booleans(),
    masks=st.booleans(),
    ragged=st.booleans(),
    multimask=st.sampled_from([None, True, False]),
    seed=st.integers(0, 1000),
)
@example(Way(None, True, True, "tokens"), [2, 1], 3, True, False, True, None, 1)
@example(Way(1, True, False, "stock", 1), [1, 2], 2, False, False, True, False, 2)
@example(Way(None, False, True, "tokens"), [1, 1], 2, True, True, True, True, 3)
@example(Way(None, True, True, "tokens"), [3], 0, False, False, False, False, 4)
@example(STOCK, [1, 1], 2, True, False, True, False, 5)
@settings(max_examples=1, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
def test_every_way_equals_stock_one_by_one(way, counts, points, boxes, masks, ragged, multimask, seed):
    embeddings = embeddings_of(len(counts), seed).requires_grad_()
    prompts = mixed_prompts(counts, seed, points=points, boxes=boxes, masks=masks, ragged=ragged)
    compare(exact(), way, embeddings, prompts, multimask, outputs=1e-10, relative=1e-9, least=1e-2)


def test_single_precision_stays_near_stock():
    decoder = Decoder.random(0)
    embeddings = embeddings_of(2, 7, torch.float32).requires_grad_()
    prompts = mixed_prompts((3, 1), 7, points=1)
    have = decoder(embeddings, prompts, multimask_output=None)
    want = stock_row_by_row(decoder, embeddings, prompts)
    largest = float(want[0].detach().abs().max())
    assert float((have.low_res_logits - want[0]).detach().abs().max()) <= 1e-5 * largest
    ours, theirs = (
        torch.cat(
            [
                value.flatten()
                for value in gradients(decoder, embeddings, output).values()
                if value is not None
            ]
        )
        for output in (have, want)
    )
    assert float((ours - theirs).norm()) <= 5e-6 * float(theirs.norm())


def test_a_padded_row_equals_the_row_alone():
    decoder, embeddings = Decoder.random(0), embeddings_of(1, 3, torch.float32)
    coords = torch.tensor([[[100.0, 200], [9e5, -7], [9e5, -7]], [[7.0, 5], [900, 30], [400, 40]]])
    labels = torch.tensor([[1, 0, 0], [1, 0, 1]], dtype=torch.int32)
    boxes = torch.tensor([[9e5, 0, -1, 3], [10.0, 20, 700, 800]])
    both = Prompts(
        (2,), coords, labels, boxes, point_counts=torch.tensor([1, 3]), has_box=torch.tensor([False, True])
    )
    alone = Prompts((1,), coords[:1, :1], labels[:1, :1])
    with torch.no_grad():
        have, want = decoder(embeddings, both), decoder(embeddings, alone)
    assert torch.allclose(have.low_res_logits[:1], want.low_res_logits, atol=1e-6)
    assert torch.allclose(have.iou_predictions[:1], want.iou_predictions, atol=1e-6)


def test_a_row_without_any_prompt_may_stand_beside_prompted_ones():
    decoder, embeddings = Decoder.random(0), embeddings_of(1, 3, torch.float32)
    coords, labels = torch.full((2, 1, 2), 300.0), torch.ones(2, 1, dtype=torch.int32)
    with torch.no_grad():
        both = decoder(embeddings, Prompts((2,), coords, labels, point_counts=torch.tensor([0, 1])))
        free = decoder(embeddings, Prompts.none(1))
    assert torch.allclose(both.low_res_logits[:1], free.low_res_logits, atol=1e-6)
    assert not torch.allclose(both.low_res_logits[1:], free.low_res_logits, atol=1e-3)


@pytest.mark.parametrize("fields", [{"points": 1}, {"boxes": True, "masks": True}, {}])
def test_images_prepared_once_answer_as_images_given_each_time(fields):
    decoder, embeddings = Decoder.random(0), embeddings_of(2, 3, torch.float32)
    counts = (1, 3) if fields else (1, 1)
    prompts = mixed_prompts(counts, 4, **fields)
    side = decoder.precompute(embeddings)
    with torch.no_grad():
        have, want = (
            decoder(side, prompts, multimask_output=True),
            decoder(embeddings, prompts, multimask_output=True),
        )
    assert torch.allclose(have.low_res_logits, want.low_res_logits, atol=1e-6)
    assert torch.allclose(have.iou_predictions, want.iou_predictions, atol=1e-6)


def test_images_prepared_before_the_weights_changed_are_refused():
    decoder = Decoder.random(0)
    side = decoder.precompute(embeddings_of(1, dtype=torch.float32))
    decoder.load_state_dict(Decoder.random(1).state_dict())
    with torch.no_grad(), pytest.raises(InputError, match="changed since"):
        decoder(side, Prompts.none(1))


def test_images_prepared_once_are_not_trained_through():
    decoder = Decoder.random(0)
    side = decoder.precompute(embeddings_of(1, dtype=torch.float32))
    with pytest.raises(InputError, match="gradients"):
        decoder(side, Prompts.none(1))


@pytest.mark.parametrize("training", [False, True])
def test_a_call_never_asks_the_device_for_a_number(training):
    """On a GPU each such question waits for everything that was asked before."""
    decoder = Decoder.random(0)
    decoder.way = Way(None, True, True, "tokens")
    embeddings = embeddings_of(2, dtype=torch.float32)
    prompts = mixed_prompts((1, 2), 4, points=2, boxes=True, ragged=True)
    with torch.profiler.profile() as profile, torch.set_grad_enabled(training):
        output = decoder(embeddings, prompts)
        if training:
            output.low_res_logits.mean().backward()
    ran = {event.key for event in profile.key_averages()}
    assert "aten::bmm" in ran
    assert not ran & {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select"}


def test_a_cpu_computes_image_by_image():
    decoder, embeddings = Decoder.random(0), embeddings_of(3, 3, torch.float32)
    with torch.no_grad():
        prompts = mixed_prompts((1, 1, 1), 4, points=2)
        together = decoder(embeddings, prompts)
        for image in range(3):
            part = slice(image, image + 1)
            alone = decoder(embeddings[part], prompts.of_images(part))
            assert torch.equal(together.low_res_logits[part], alone.low_res_logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_float_dtype_are_cast_inside(dtype):
    decoder, embeddings = Decoder.random(0), embeddings_of(1, 3, torch.float32).to(dtype)
    with torch.no_grad():
        have = decoder(embeddings, Prompts.none(1)).low_res_logits
        assert torch.equal(have, decoder(embeddings.float(), Prompts.none(1)).low_res_logits)
    assert have.dtype == torch.float32


def test_under_autocast_nothing_is_rounded_that_stock_does_not_round():
    decoder, embeddings = Decoder.random(0), embeddings_of(1, 3, torch.float32)
    prompts = mixed_prompts((4,), 4, points=1)
    with torch.no_grad():
        precise = decoder(embeddings, prompts).low_res_logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = decoder(embeddings, prompts).low_res_logits
            stock, _ = stock_row_by_row(decoder, embeddings, prompts)
    error = float((rounded.float() - precise).norm())
    assert 0 < error <= 1.5 * float((stock[:, :1].float() - precise).norm())


@pytest.mark.parametrize(
    ("device", "queries", "images", "tokens", "way"),
    [
        ("cpu", 1, 1, 5, Way(1, False, True, "tokens", CPU_PROMPTS_PER_CALL)),
        ("cpu", 16, 1, 7, Way(1, True, True, "tokens", CPU_PROMPTS_PER_CALL)),
        ("cuda", 16, 8, 7, Way(None, False, True, "tokens")),
        ("cuda", 64, 8, 7, Way(None, True, True, "tokens")),
        ("cuda", 64, 8, MOST_ABSORBED_TOKENS, Way(None, True, True, "tokens")),
        ("cuda", 64, 8, MOST_ABSORBED_TOKENS + 1, Way(None, True, False, "tokens")),
    ],
)
def test_the_way_is_chosen_by_device_prompts_and_tokens(device, queries, images, tokens, way):
    def chosen(**facts):
        return choose_way(torch.device(device), queries, images, tokens, **facts)

    assert chosen(mask_prompts=False, autocast=False) == way
    assert not chosen(mask_prompts=True, autocast=False).shared
    assert not chosen(mask_prompts=False, autocast=True).absorbed
