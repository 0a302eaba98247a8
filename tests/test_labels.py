"""Labels: aligned with the store's tiles at any integer factor, matched by name or order, never silently."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from training_stores import blob_labels, make_image_store, make_store, save_labels, save_png_folder

from embedcache import encode
from embedcache.errors import ConfigError, LabelError, MissingTilesError
from embedcache.geometry import IMAGE_SIZE, Tile
from embedcache.store import EmbeddingStore
from embedcache.train.questions.targets import area_average, low_res_targets
from embedcache.train.truth.labels import labelled_numbers, open_labels
from embedcache.train.truth.matching import Factor, find_factor
from embedcache.train.truth.needed import needed_tiles, require_tiles
from embedcache.train.truth.remembered_labels import RememberedLabels
from embedcache.train.truth.task import decide_task

LABELS = blob_labels(4, 96, 128)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """4 planes of 96 × 128 px in 64 px tiles; the lower tiles are shifted inward."""
    return make_store(tmp_path_factory.mktemp("labels") / "s.zarr", LABELS)


def assembled(labels: object, store: EmbeddingStore) -> np.ndarray:
    """All crops put back into a volume."""
    whole = np.zeros(LABELS.shape, np.int32)
    for number in range(len(store)):
        if store.table[number, 0] >= 0:
            tile = store.tile(number)
            whole[tile.plane][tile.slices] = labels.crop(tile)  # type: ignore[attr-defined]
    return whole


def test_crops_put_together_are_the_label_volume(store: EmbeddingStore, tmp_path: Path) -> None:
    labels = open_labels(save_labels(tmp_path / "l.npy", LABELS), store)
    assert labels.kind == "semantic"
    assert labels.crop(store.tile(0)).dtype == np.bool_
    assert np.array_equal(assembled(labels, store), LABELS > 0)
    assert labels.planes == {0, 1, 2, 3}
    assert not labels.same_for_all_planes


def test_ink_of_few_grey_values_is_a_mask_and_how_much_hangs_on_the_threshold_is_said(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    grey = np.zeros(LABELS.shape[1:], np.uint8)
    for value, rows in ((85, 0), (127, 8), (170, 16), (255, 24)):
        grey[rows : rows + 7, 20:80] = value
    Image.fromarray(grey).save(tmp_path / "s7_inklabels.png")
    labels = open_labels(tmp_path / "s7_inklabels.png", store)
    assert labels.kind == "semantic", "flat regions of grey are no ids where the file is called ink"
    assert "grey values (85, 127, 170, 255): above 127 are" in labels.alignment
    assert np.array_equal(assembled(labels, store)[1], grey > 127)
    share = re.search(
        r"above 127 are ([\d.]+)% of the sampled pixels, ([\d.]+)% lie between 64 and 191", labels.alignment
    )
    assert share is not None
    assert 0 < float(share[1]) < 20
    assert float(share[2]) == pytest.approx(1.5 * float(share[1]), abs=0.2), "three values, and two"
    (tmp_path / "s7_inklabels.png").rename(tmp_path / "cells.png")
    assert open_labels(tmp_path / "cells.png", store).kind == "instances"


def test_ink_that_reaches_no_further_than_127_is_cut_at_zero() -> None:
    ids = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 20, 0), 20, 1)
    assert decide_task([ids], ink=True).threshold == 0.0
    assert decide_task([ids], ink=True).kind == "semantic"
    assert decide_task([ids], "instances", ink=True).kind == "instances"


def test_labels_within_a_validation_mask_are_read_once_in_a_sweep(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    mask = np.zeros((1, *LABELS.shape[1:]), np.uint8)
    mask[:, :, :64] = 1
    paths = save_labels(tmp_path / "l.npy", LABELS), save_labels(tmp_path / "v.npy", mask)
    labels = open_labels(paths[0], store, validation=paths[1])
    kept = RememberedLabels(labels)
    inner = kept.validating()
    assert inner is kept.validating(), "runs of a sweep share it"
    tile = store.tile(0)
    assert inner.crop(tile) is inner.crop(tile)
    assert np.array_equal(inner.supervised(tile), labels.validating().supervised(tile))
    assert kept.supervised(tile).all()
    assert pickle.loads(pickle.dumps(labels)).validating().counts(tile) == inner.counts(tile)


def test_zarr_and_tiff_labels_are_read_like_arrays(store: EmbeddingStore, tmp_path: Path) -> None:
    zarr.save_array(str(tmp_path / "l.zarr"), LABELS)
    tifffile.imwrite(tmp_path / "l.tif", LABELS, photometric="minisblack")
    for name in ("l.zarr", "l.tif"):
        assert np.array_equal(assembled(open_labels(tmp_path / name, store), store), LABELS > 0)


def test_a_finer_label_is_averaged_down_and_a_coarser_one_enlarged(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    fine = open_labels(save_labels(tmp_path / "f.npy", LABELS.repeat(2, axis=1).repeat(2, axis=2)), store)
    assert "2 times finer" in fine.alignment
    assert np.array_equal(assembled(fine, store), LABELS > 0)
    small = LABELS[:, ::4, ::4]
    coarse = open_labels(save_labels(tmp_path / "c.npy", small), store)
    assert "4 times coarser" in coarse.alignment
    assert np.array_equal(assembled(coarse, store), small.repeat(4, axis=1).repeat(4, axis=2) > 0)


def test_a_label_of_another_level_may_differ_in_depth_too(store: EmbeddingStore, tmp_path: Path) -> None:
    fine = LABELS.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    labels = open_labels(save_labels(tmp_path / "f.npy", fine), store)
    assert np.array_equal(assembled(labels, store), LABELS > 0)


@given(st.integers(20, 400), st.integers(20, 400), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_every_pyramid_rounding_of_a_factor_is_recognised(height: int, width: int, factor: int) -> None:
    up = (height * factor + (factor - 1), width * factor)
    assert find_factor(up, (height, width)) == Factor(down=factor)
    assert find_factor((height, width), up) == Factor(up=factor)


def test_a_size_that_fits_no_level_is_refused_with_both_sizes(store: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"100×128.*96×128"):
        open_labels(save_labels(tmp_path / "l.npy", np.ones((4, 100, 128), np.uint8)), store)
    with pytest.raises(LabelError, match="7 planes"):
        open_labels(save_labels(tmp_path / "l.npy", np.ones((7, 96, 128), np.uint8)), store)


def test_labels_without_anything_positive_are_refused(store: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="nothing positive"):
        open_labels(save_labels(tmp_path / "l.npy", np.zeros_like(LABELS)), store)


def test_a_missing_label_file_is_a_label_error(store: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="nowhere"):
        open_labels(tmp_path / "nowhere.zarr", store)


def test_one_plane_lies_on_all_planes(store: EmbeddingStore, tmp_path: Path) -> None:
    labels = open_labels(save_png_folder(tmp_path / "p", {"ink.png": LABELS[0]}) / "ink.png", store)
    assert labels.same_for_all_planes
    assert np.array_equal(assembled(labels, store), np.broadcast_to(LABELS[0] > 0, LABELS.shape))


def test_a_folder_of_label_images_lies_on_a_stack_in_order_or_by_number(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    names = [f"labels{index:08d}.png" for index in range(4)]
    whole = save_png_folder(tmp_path / "whole", dict(zip(names, LABELS, strict=True)))
    assert np.array_equal(assembled(open_labels(whole, store), store), LABELS > 0)
    some = save_png_folder(tmp_path / "some", {names[1]: LABELS[1], names[3]: LABELS[3]})
    labels = open_labels(some, store)
    assert labels.planes == {1, 3}
    assert "numbers in their names" in labels.alignment
    assert {int(store.table[n, 0]) for n in labels.tiles(store)} == {1, 3}


def test_images_are_matched_by_name_then_stem_then_order(tmp_path: Path) -> None:
    masks = {"a.jpg": LABELS[0], "b.jpg": LABELS[1][:80, :100]}
    store = make_image_store(tmp_path / "s.zarr", masks)
    stems = save_png_folder(tmp_path / "stems", {"b.png": masks["b.jpg"], "zz.png": LABELS[3]})
    labels = open_labels(stems, store)
    assert labels.planes == {1}
    assert "stem" in labels.alignment
    order = save_png_folder(tmp_path / "order", {"1.png": masks["a.jpg"], "2.png": masks["b.jpg"]})
    assert "natural order" in open_labels(order, store).alignment
    other = save_png_folder(tmp_path / "other", {"x.png": masks["a.jpg"]})
    with pytest.raises(LabelError, match="cannot be matched"):
        open_labels(other, store)


def test_supervision_says_where_labels_count(store: EmbeddingStore, tmp_path: Path) -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[:, :64] = 255
    path = save_png_folder(tmp_path / "m", {"mask.png": mask}) / "mask.png"
    labels = open_labels(save_labels(tmp_path / "l.npy", LABELS), store, supervision=path)
    columns = {int(store.table[n, 2]) for n in labels.tiles(store)}
    assert columns == {0}
    assert labels.supervised(Tile(0, 0, 32, 64, 64)).sum() == 64 * 32
    positive, supervised = labels.counts(Tile(0, 0, 32, 64, 64))
    assert supervised == 64 * 32
    assert positive == (LABELS[0, :64, 32:64] > 0).sum()


def test_an_ignored_value_counts_neither_as_foreground_nor_as_background(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    ids = np.zeros((4, 96, 128), np.uint8)
    ids[:, :40, :40], ids[:, 50:70, 20:30], ids[:, 60:, 60:] = 1, 7, 255
    labels = open_labels(save_labels(tmp_path / "l.npy", ids), store, ignore=255)
    assert labels.kind == "instances"
    assert "pixels of value 255 do not count" in labels.alignment
    for number in labelled_numbers(store, labels.planes).tolist():
        tile = store.tile(number)
        truth = ids[tile.plane][tile.slices]
        assert np.array_equal(labels.crop(tile), np.where(truth == 255, 0, truth))
        assert np.array_equal(labels.supervised(tile), truth != 255)
        assert labels.counts(tile) == (((truth > 0) & (truth != 255)).sum(), (truth != 255).sum())


def test_of_finer_labels_the_pixels_that_count_decide(store: EmbeddingStore, tmp_path: Path) -> None:
    fine = np.zeros((4, 192, 256), np.uint8)
    fine[0, 0, 0], fine[0, 0, 1] = 1, 255  # one of three that count
    fine[0, 0, 2], fine[0, 1, 2], fine[0, 0, 3] = 1, 1, 255  # two of three
    fine[0, 0, 4:6] = 255
    fine[0, 1, 4] = 1  # one of two
    fine[0, :2, 6:8] = 255
    labels = open_labels(save_labels(tmp_path / "l.npy", fine), store, ignore=255, task="semantic")
    tile = store.tile(0)
    assert labels.crop(tile)[0, :4].tolist() == [False, True, True, False]
    assert labels.supervised(tile)[0, :4].tolist() == [True, True, True, False]


def test_tiles_where_all_is_ignored_are_left_out_and_counted_and_labels_that_are_all_ignored_refused(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    ids = np.zeros((4, 96, 128), np.uint8)
    ids[0, 10:20, 10:20] = 1
    ids[1] = 255
    labels = open_labels(save_labels(tmp_path / "l.npy", ids), store, ignore=255)
    on_plane_1 = int(((store.table[:, 0] == 1) & store.base).sum())
    assert labels.uncounted(store) == on_plane_1
    assert not (np.asarray(store.table)[labels.tiles(store), 0] == 1).any()
    for array, value in ((np.full((4, 96, 128), 255, np.uint8), 255), (ids // 255 + (ids == 1), 1)):
        with pytest.raises(LabelError, match=f"nothing positive beside the ignored value {value}"):
            open_labels(save_labels(tmp_path / "all.npy", array), store, ignore=value)


def test_of_a_cell_that_is_partly_supervised_that_part_decides() -> None:
    tile = Tile(0, 0, 0, 1024, 1024)
    supervised, mask = np.zeros((1024, 1024), bool), np.zeros((2, 1024, 1024), bool)
    supervised[:, 2:] = True  # half of each cell of the first column
    supervised[:4, 2:4] = False
    mask[0, :, 2] = True  # half of that half
    mask[1, :, :2] = True  # only what does not count
    targets, weight = low_res_targets(mask, supervised, tile)
    assert weight[:2, 0].tolist() == [0, 1]
    assert targets[0, 1:, 0].all()
    assert not targets[0, 0, 0]
    assert not targets[0, :, 1:].any()
    assert not targets[1].any()


def test_auto_tells_masks_from_instances() -> None:
    y, x = np.mgrid[:64, :64]
    soft = np.clip(255 * (20 - np.hypot(y - 32, x - 32)) / 4 + 128, 0, 255).astype(np.uint8)
    grey = decide_task([soft])
    assert (grey.kind, grey.threshold) == ("semantic", 127.0)
    assert "above 127 are" in grey.sentence
    ids = (x // 16 + 4 * (y // 16)).astype(np.uint8)
    assert decide_task([ids]).kind == "instances"
    assert decide_task([ids.astype(np.uint32)]).kind == "instances"
    assert decide_task([(ids > 3).astype(np.uint8)]).threshold == 0.0
    assert decide_task([(ids > 3).astype(np.uint16) * 65535]).kind == "semantic"
    assert decide_task([(soft / 255).astype(np.float32)]).threshold == 0.5
    assert decide_task([ids], "semantic").threshold == 0.0
    assert decide_task([soft], "instances").kind == "instances"
    with pytest.raises(ConfigError, match="--task"):
        decide_task([soft], "panoptic")


def test_instance_ids_survive_even_when_they_do_not_fit_32_bit(store: EmbeddingStore, tmp_path: Path) -> None:
    ids = (LABELS > 0).astype(np.uint64) * 2**40
    ids[:, :, 64:] *= 2
    labels = open_labels(save_labels(tmp_path / "l.npy", ids), store)
    assert labels.kind == "instances"
    crop = labels.crop(Tile(0, 0, 0, 96, 128))
    assert crop.dtype == np.int32
    assert np.array_equal(crop > 0, ids[0] > 0)
    assert len(np.unique(crop)) == len(np.unique(ids[0]))


def test_missing_tiles_are_named_by_the_command_that_encodes_them(tmp_path: Path) -> None:
    labels = np.full((4, 64, 128), 255, np.uint8)
    partial = make_store(tmp_path / "s.zarr", labels, wanted=[0, 1, 64, 65])  # planes 0 and 1
    path = save_labels(tmp_path / "l.npy", labels)
    opened = open_labels(path, partial)
    with pytest.raises(MissingTilesError, match=r"lacks 4 of 8 tiles.*\n.*--z-range 2:4") as refusal:
        require_tiles(partial, opened, allow_partial=False)
    assert "embedcache encode --volume /data/volume.zarr" in str(refusal.value)
    assert refusal.value.exit_code == 3
    assert "--allow-partial" in str(refusal.value)
    assert "4 of 8" in (require_tiles(partial, opened, allow_partial=True) or "")
    flat = open_labels(save_png_folder(tmp_path / "p", {"ink.png": labels[0]}) / "ink.png", partial)
    assert needed_tiles(partial, flat).tolist() == [0, 1, 64, 65]  # one label for all planes: the wanted ones


@pytest.mark.parametrize("allow_partial", [False, True])
def test_a_store_without_a_tile_says_so_and_who_is_writing_it(tmp_path: Path, allow_partial: bool) -> None:
    labels = np.full((2, 64, 64), 255, np.uint8)
    empty = make_store(tmp_path / "s.zarr", labels, absent=range(64))
    opened = open_labels(save_labels(tmp_path / "l.npy", labels), empty)
    with pytest.raises(
        MissingTilesError, match=r"Nothing .* is encoded in .*s\.zarr yet: 2 tiles"
    ) as refusal:
        require_tiles(empty, opened, allow_partial=allow_partial)
    assert "embedcache encode --volume /data/volume.zarr" in str(refusal.value)
    assert "--allow-partial" not in str(refusal.value)
    assert "being written" not in str(refusal.value)
    written = (
        rf"The whole store is being written by process {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d"
    )
    with EmbeddingStore.open(empty.path).writer(), pytest.raises(MissingTilesError, match=written) as refusal:
        require_tiles(empty, opened, allow_partial=allow_partial)
    assert "Wait until it has finished or has committed some, or:\nEncode them: " in str(refusal.value)


@given(st.integers(10, 700), st.integers(10, 700), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_targets_keep_the_area_of_the_mask_and_weights_cover_the_content(
    height: int, width: int, seed: int
) -> None:
    tile = Tile(0, 0, 0, height, width)
    mask = np.random.default_rng(seed).random((height, width)) > 0.5
    shares = area_average(mask, tile)
    in_height, in_width = tile.input_size
    area = shares.sum() * 16 / (in_height * in_width)
    assert area == pytest.approx(mask.mean(), abs=1e-3)
    targets, weight = low_res_targets(np.ones((1, height, width), bool), np.ones((height, width), bool), tile)
    rows, columns = (round(size / IMAGE_SIZE * 256 - 1e-9) for size in (in_height, in_width))
    assert abs(int(weight.any(axis=1).sum()) - rows) <= 1
    assert abs(int(weight.any(axis=0).sum()) - columns) <= 1
    assert ((targets[0] > 0) == (weight > 0))[weight > 0].all()


def test_the_volume_itself_is_refused_as_its_own_labels(tmp_path: Path) -> None:
    volume = tmp_path / "scan.npy"
    np.save(volume, np.random.default_rng(0).integers(0, 255, (1, 64, 64), dtype=np.uint8))
    made = encode(volume, model="vit_tiny", tile=64, cache_dir=tmp_path / "embeddings")
    with pytest.raises(LabelError, match=r"the volume that .* was encoded from"):
        open_labels(volume, made)
