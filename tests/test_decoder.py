"""What the decoder promises: segment-anything's results and gradients, for many images in one call."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import InputError, WeightsError
from embedcache.geometry import Tile
from embedcache.sam import Decoder, Prompts, random_weights, upscale_logits
from embedcache.sam.parts import modeling


def _embeddings(batch, seed=0, dtype=torch.float32):
    return torch.randn(batch, 256, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _prompts(counts, seed, points=0, boxes=False, masks=False):
    generator = torch.Generator().manual_seed(seed)
    queries = sum(counts)
    corners = torch.rand(queries, 2, 2, generator=generator) * 1024
    return Prompts(
        tuple(counts),
        point_coords=torch.rand(queries, points, 2, generator=generator) * 1024 if points else None,
        point_labels=torch.randint(-1, 2, (queries, points), generator=generator).int() if points else None,
        boxes=corners.sort(dim=1).values.reshape(queries, 4) if boxes else None,
        mask_input=torch.randn(queries, 1, 256, 256, generator=generator) if masks else None,
    )


def _stock(decoder, embeddings, prompts, multimask):
    """segment-anything's own forward, image by image."""
    masks, ious, start = [], [], 0
    dtype = embeddings.dtype
    for embedding, count in zip(embeddings, prompts.counts, strict=True):
        part = slice(start, start + count)
        start += count
        points = (
            None if prompts.point_coords is None else (prompts.point_coords[part], prompts.point_labels[part])
        )
        sparse, dense = decoder.prompt_encoder(
            points=points,
            boxes=None if prompts.boxes is None else prompts.boxes[part],
            masks=None if prompts.mask_input is None else prompts.mask_input[part].to(dtype),
        )
        repeats = count // len(sparse)  # without any prompt stock answers for one query
        mask, iou = decoder.mask_decoder(
            image_embeddings=embedding[None],
            image_pe=decoder.prompt_encoder.get_dense_pe().to(dtype),
            sparse_prompt_embeddings=sparse.to(dtype),
            dense_prompt_embeddings=dense.to(dtype),
            multimask_output=multimask,
        )
        masks.append(mask.repeat(repeats, 1, 1, 1))
        ious.append(iou.repeat(repeats, 1))
    return torch.cat(masks), torch.cat(ious)


@pytest.mark.parametrize("multimask", [False, True])
def test_without_prompts_each_image_gets_one_query_as_in_stock(multimask):
    decoder = Decoder.random(0)
    embeddings = _embeddings(2, dtype=torch.float32)
    with torch.no_grad():
        have = decoder(embeddings, Prompts.none(2), multimask_output=multimask)
        want = _stock(decoder, embeddings, Prompts.none(2), multimask)
    for ours, theirs in zip(have, want, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_images_do_not_see_each_others_prompts():
    decoder = Decoder.random(0)
    embeddings = _embeddings(2, dtype=torch.float32)
    with torch.no_grad():
        both = decoder(embeddings, _prompts((1, 2), 5, points=2))
        prompts = _prompts((1, 2), 5, points=2)
        last = Prompts((2,), prompts.point_coords[1:], prompts.point_labels[1:])
        alone = decoder(embeddings[1:], last)
    assert torch.allclose(both.low_res_logits[1:], alone.low_res_logits, atol=1e-5)


def test_the_state_dict_has_sams_names_and_round_trips():
    state = random_weights("vit_tiny", 0).decoder_state()
    decoder = Decoder.from_state(state)
    assert decoder.state_dict().keys() == state.keys()
    assert all(torch.equal(decoder.state_dict()[name], value) for name, value in state.items())


def test_training_a_decoder_leaves_the_state_it_came_from_alone():
    state = random_weights("vit_tiny", 0).decoder_state()
    before = {name: value.clone() for name, value in state.items()}
    decoder = Decoder.from_state(state)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(1)
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    assert all(torch.equal(state[name], value) for name, value in before.items())


def test_a_state_that_is_no_decoder_is_refused():
    with pytest.raises(WeightsError, match="no SAM decoder"):
        Decoder.from_state({"a": torch.zeros(1)})


def test_a_random_decoder_learns():
    torch.manual_seed(0)
    decoder = Decoder.random(0)
    embeddings = _embeddings(1, dtype=torch.float32)
    target = (embeddings[:, :1, :, :] > 0).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        logits = decoder(embeddings, Prompts.none(1)).low_res_logits
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.01


def test_the_dense_position_embedding_is_computed_once_and_follows_its_matrix():
    decoder = Decoder.random(0)
    first = decoder.dense_pe()
    assert decoder.dense_pe() is first
    assert torch.equal(first, decoder.prompt_encoder.get_dense_pe())
    decoder.load_state_dict(Decoder.random(1).state_dict())
    assert not torch.equal(decoder.dense_pe(), first)
    assert torch.equal(decoder.dense_pe(), decoder.prompt_encoder.get_dense_pe())
    other = copy.deepcopy(decoder)
    assert torch.equal(other.dense_pe(), decoder.dense_pe())


def test_the_dense_position_embedding_does_not_remember_modes():
    decoder = Decoder.random(0)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = decoder.dense_pe()
    assert not inside.is_inference()
    assert torch.equal(inside, decoder.prompt_encoder.get_dense_pe())


GOOD = {"point_coords": torch.full((2, 1, 2), 5.0), "point_labels": torch.ones(2, 1, dtype=torch.int32)}


@pytest.mark.parametrize(
    ("counts", "fields", "message"),
    [
        ((), {}, "at least one"),
        ((1, 0), {}, "at least one"),
        ((2,), {"point_coords": GOOD["point_coords"]}, "together"),
        ((3,), GOOD, r"\(3, N, 2\)"),
        ((2,), {**GOOD, "point_coords": GOOD["point_coords"].double()}, "float64"),
        ((2,), {**GOOD, "point_coords": GOOD["point_coords"] * 300}, "1024"),
        ((2,), {**GOOD, "point_coords": -GOOD["point_coords"]}, "from -5"),
        ((2,), {**GOOD, "point_coords": GOOD["point_coords"] * float("nan")}, "not finite"),
        ((2,), {**GOOD, "point_labels": GOOD["point_labels"] * 2}, "other values"),
        ((2,), {**GOOD, "point_labels": GOOD["point_labels"].float()}, "int32"),
        ((2,), {**GOOD, "point_labels": GOOD["point_labels"][:1]}, "point_labels"),
        ((1,), {"boxes": torch.tensor([[5.0, 5, 3, 9]])}, "x0 <= x1"),
        ((1,), {"boxes": torch.tensor([[5.0, 5, 3000, 9]])}, "1024"),
        ((1,), {"boxes": torch.zeros(4)}, r"\(1, 4\)"),
        ((1,), {"mask_input": torch.zeros(1, 256, 256)}, "mask_input"),
        ((2,), {**GOOD, "point_counts": torch.tensor([1, 2])}, "beyond 0 to 1"),
        ((2,), {**GOOD, "point_counts": torch.tensor([-1, 1])}, "beyond 0 to 1"),
        ((2,), {**GOOD, "point_counts": torch.tensor([1])}, r"\(2,\)"),
        ((2,), {"point_counts": torch.tensor([0, 0])}, "without points"),
        ((1,), {"has_box": torch.tensor([False])}, "without boxes"),
        ((1,), {"boxes": torch.zeros(1, 4), "has_box": torch.tensor([1])}, "torch.bool"),
    ],
)
def test_prompts_that_cannot_be_are_refused(counts, fields, message):
    with pytest.raises(InputError, match=message):
        Prompts(counts, **fields)


def test_padding_points_may_lie_anywhere():
    coords = torch.tensor([[[5.0, 5.0], [-1.0, 9999.0]]])
    prompts = Prompts((1,), coords, torch.tensor([[1, -1]], dtype=torch.int32))
    assert prompts.queries == 1


def test_points_and_boxes_that_take_no_part_may_lie_anywhere():
    coords = torch.tensor([[[5.0, 5.0], [-1.0, 9999.0]]])
    boxes = torch.tensor([[9.0, 9.0, -3.0, 5000.0]])
    labels = torch.ones(1, 2, dtype=torch.int32)
    prompts = Prompts(
        (1,), coords, labels, boxes, point_counts=torch.tensor([1]), has_box=torch.tensor([False])
    )
    assert prompts.to("cpu").point_counts.tolist() == [1]
    with pytest.raises(InputError, match="1024"):
        Prompts((1,), coords, labels, point_counts=torch.tensor([2]))


def test_prompts_of_some_images_are_their_rows():
    prompts = _prompts((1, 2, 1), 0, points=2, boxes=True, masks=True)
    part = prompts.of_images(slice(1, 3))
    assert part.counts == (2, 1)
    assert torch.equal(part.point_coords, prompts.point_coords[1:])
    assert torch.equal(part.boxes, prompts.boxes[1:])
    assert torch.equal(part.mask_input, prompts.mask_input[1:])
    assert part.point_counts is None
    every = prompts.of_images(slice(None))
    assert every.counts == prompts.counts
    assert torch.equal(every.point_labels, prompts.point_labels)


def test_replaced_tensors_stand_beside_the_others():
    prompts = _prompts((1, 2), 0, points=2)
    changed = prompts.replaced(mask_input=torch.zeros(3, 1, 256, 256), point_counts=torch.tensor([1, 2, 2]))
    assert torch.equal(changed.point_coords, prompts.point_coords)
    assert changed.mask_input.shape == (3, 1, 256, 256)
    assert prompts.mask_input is None
    with pytest.raises(AttributeError, match="points"):
        prompts.replaced(points=torch.zeros(3, 1, 2))


def test_prompts_move_without_being_changed():
    prompts = _prompts((1, 2), 0, points=2, boxes=True, masks=True)
    moved = prompts.to("cpu")
    assert moved.counts == prompts.counts
    assert torch.equal(moved.boxes, prompts.boxes)


@pytest.mark.parametrize(
    "embeddings",
    [torch.zeros(256, 64, 64), torch.zeros(1, 256, 32, 32), torch.zeros(1, 256, 64, 64, dtype=torch.int8)],
)
def test_embeddings_of_another_shape_or_of_integers_are_refused(embeddings):
    with pytest.raises(InputError, match="image_embeddings"):
        Decoder.random(0)(embeddings, Prompts.none(1))


def test_prompts_of_another_number_of_images_are_refused():
    with pytest.raises(InputError, match="3 images, embeddings of 2"):
        Decoder.random(0)(torch.zeros(2, 256, 64, 64), Prompts.none(3))


@given(height=st.integers(1, 300), width=st.integers(1, 300))
@settings(max_examples=8, deadline=None)
def test_upscaled_logits_are_sams_postprocessed_masks(height, width):
    tile = Tile(0, 0, 0, height, width)
    logits = torch.randn(1, 2, 256, 256, generator=torch.Generator().manual_seed(height))
    sam = SimpleNamespace(image_encoder=SimpleNamespace(img_size=1024))
    want = modeling.Sam.postprocess_masks(sam, logits, tile.input_size, (height, width))
    assert torch.equal(upscale_logits(logits, tile), want)
    assert torch.allclose(upscale_logits(logits[0, 0], tile), want[0, 0], atol=1e-5)
