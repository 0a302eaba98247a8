"""Committing a shard: what is kept, what is shared, in which order it is written, and what a kill leaves."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from other_disks import full_disk, refusing_lines_with, refusing_rename_to, watched
from store_samples import DIGEST, commit, embedding, file_bytes, make_store, quantised, spec, stored, table

from embedcache.errors import CorruptionError, EmbedcacheError, StorageError
from embedcache.files import crc32c, sha256_file
from embedcache.store import EmbeddingStore, layout
from embedcache.store.journal.record import ShardRecord
from embedcache.store.shards.quantise import Quantised
from embedcache.store.shards.scales import CHANNELS, read_scales
from embedcache.store.shards.shard import FLOAT16, INT8, Form, payload

FIXTURE = Path(__file__).parent / "fixtures" / "store-format-1-first.tar.xz"
FORMS = [FLOAT16, INT8]
OF_INT8_ALONE = ("scales", "no scales")
N = 4


def new_store(path: Path, form: Form = FLOAT16, n: int = N, shard_tiles: int = N) -> EmbeddingStore:
    return make_store(path, n=n, shard_tiles=shard_tiles, spec=spec(store_dtype=form.dtype))


def digest_of(seed: int) -> str:
    return f"{seed:064x}"


def put(store: EmbeddingStore, tiles: Mapping[int, int], shard: int = 0) -> None:
    """Commit tiles that look like the seeds given: equal seeds are identical tiles."""
    with store.writer() as writer:
        writer.commit_shard(
            shard,
            embeddings={tile: stored(store, seed) for tile, seed in tiles.items()},
            input_digests={tile: digest_of(seed) for tile, seed in tiles.items()},
        )


def is_seed(store: EmbeddingStore, tile: int, seed: int) -> bool:
    values, scales = store.reader().read_stored([tile])
    wanted = stored(store, seed)
    if isinstance(wanted, Quantised):
        assert scales is not None
        return np.array_equal(values[0], wanted.values) and np.array_equal(scales[0], wanted.scales)
    return np.array_equal(values[0], wanted)


def shard_size(store: EmbeddingStore, shard: int = 0) -> int:
    return layout.shard_path(store.path, shard).stat().st_size


# ---- identical tiles


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.dtype)
def test_identical_tiles_are_stored_once_and_every_zarr_reader_reads_all_of_them(
    tmp_path: Path, form: Form
) -> None:
    store = new_store(tmp_path / "s", form, n=6, shard_tiles=3)
    put(store, {0: 7, 1: 8, 2: 7})
    put(store, {3: 9, 5: 9}, shard=1)
    assert shard_size(store, 0) == form.shard_bytes(2, 3)
    assert shard_size(store, 1) == form.shard_bytes(1, 3)
    array = zarr.open_array(tmp_path / "s" / layout.EMBEDDINGS, mode="r")
    other = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(tmp_path / "s" / layout.EMBEDDINGS)},
        }
    ).result()
    for tile, seed in {0: 7, 1: 8, 2: 7, 3: 9, 5: 9}.items():
        assert is_seed(store, tile, seed)
        wanted = np.frombuffer(payload(stored(store, seed)), form.dtype).reshape(256, 64, 64)
        assert np.array_equal(array[tile], wanted)
        assert np.array_equal(other[tile].read().result(), wanted)
    nothing = array[4]
    assert (nothing == -128).all() if form == INT8 else np.isnan(nothing).all()
    if form == INT8:
        scales = zarr.open_array(tmp_path / "s" / layout.SCALES, mode="r")[:]
        assert np.array_equal(scales[5], quantised(9).scales)
        assert np.isnan(scales[4]).all()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.dtype)
@given(
    seeds=st.lists(st.sampled_from([1, 2, 3]), min_size=N, max_size=N),
    parts=st.lists(st.sets(st.integers(0, N - 1), min_size=1), min_size=1, max_size=4),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_bytes_follow_from_the_tiles_never_from_the_order_of_commits(
    tmp_path_factory: pytest.TempPathFactory, form: Form, seeds: list[int], parts: list[set[int]]
) -> None:
    folder = tmp_path_factory.mktemp("order")
    slowly, at_once = new_store(folder / "a", form), new_store(folder / "b", form)
    for part in parts:
        put(slowly, {tile: seeds[tile] for tile in part})
    there = sorted(set().union(*parts))
    put(at_once, {tile: seeds[tile] for tile in there})
    for name in (layout.EMBEDDINGS, layout.SCALES):
        assert file_bytes(slowly.path / name) == file_bytes(at_once.path / name)
    record = slowly.shard_record(0)
    assert record is not None
    index = np.frombuffer(layout.shard_path(slowly.path, 0).read_bytes()[-4 - 16 * N : -4], "<u8")
    assert np.array_equal(record.index(N, form), index.reshape(N, 2))
    assert all(is_seed(slowly, tile, seeds[tile]) for tile in there)
    shutil.rmtree(folder)


def test_tiles_of_equal_pixels_and_other_bits_are_not_shared(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    commit(store, 0, 1)  # the same digest of pixels, two embeddings
    assert shard_size(store) == FLOAT16.shard_bytes(2, N)


def test_embeddings_of_one_checksum_that_differ_are_refused(tmp_path: Path) -> None:
    one = embedding(3)
    other = with_crc_of(one, one.copy())
    assert crc32c(payload(one)) == crc32c(payload(other))
    assert not np.array_equal(one, other)
    store = new_store(tmp_path)
    with store.writer() as writer, pytest.raises(EmbedcacheError, match="slots 0 and 2"):
        writer.commit_shard(0, embeddings={0: one, 2: other}, input_digests=dict.fromkeys((0, 2), DIGEST))
    assert not store.committed.any()


def with_crc_of(wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Other values of the same checksum: a CRC is linear, so some 33 flipped bits cancel out."""
    values.flags.writeable = True
    goal = crc32c(payload(wanted))
    places = [1000 + 4 * at for at in range(33)]  # the lowest bit of each of 33 values
    effects = []
    for place in places:
        changed = values.copy()
        changed.reshape(-1).view(np.uint16)[place] ^= 1
        effects.append(crc32c(payload(changed)) ^ goal)
    reduced: dict[int, tuple[int, int]] = {}
    for at, effect in enumerate(effects):
        chosen = 1 << at
        while effect:
            top = effect.bit_length()
            if top not in reduced:
                reduced[top] = effect, chosen
                break
            effect, chosen = effect ^ reduced[top][0], chosen ^ reduced[top][1]
        else:
            for bit, place in enumerate(places):
                values.reshape(-1).view(np.uint16)[place] ^= chosen >> bit & 1
            return values
    raise AssertionError("33 effects of 32 bits are never independent")


def test_a_shard_of_the_first_writer_is_read_and_extended(tmp_path: Path) -> None:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    path = tmp_path / "store.zarr"
    before = EmbeddingStore.open(path)[0]
    store = EmbeddingStore.open(path)
    with store.writer() as writer:
        writer.commit_shard(1, embeddings={3: embedding(3)}, input_digests={3: DIGEST})
    again = EmbeddingStore.open(path)
    assert np.array_equal(again[0], before)
    assert is_seed(again, 3, 3)


def test_a_file_that_gives_each_identical_tile_a_chunk_of_its_own_is_read_and_kept(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    put(store, {0: 7, 1: 8, 2: 7})
    unshare(store)
    store = EmbeddingStore.open(tmp_path)
    assert all(is_seed(store, tile, seed) for tile, seed in {0: 7, 1: 8, 2: 7}.items())
    put(store, {3: 9})
    assert all(is_seed(store, tile, seed) for tile, seed in {0: 7, 1: 8, 2: 7, 3: 9}.items())
    assert shard_size(store) == FLOAT16.shard_bytes(3, N)


def unshare(store: EmbeddingStore) -> None:
    """Make a shard's file and record what the first writer would have made of identical tiles."""
    from dataclasses import replace

    from embedcache.store.shards.shard import encode_index, shard_index

    record = store.shard_record(0)
    assert record is not None
    data = b""
    for slot in record.slots.tolist():
        part = bytes(payload(stored(store, {0: 7, 1: 8, 2: 7}[slot])))
        data += part + crc32c(part).to_bytes(4, "little")
    data += encode_index(shard_index(record.slots, np.arange(len(record.slots)), FLOAT16, N))
    layout.shard_path(store.path, 0).write_bytes(data)
    with store.writer() as writer:
        writer._record(replace(record, size=len(data)).to_dict(N))


# ---- what is kept


def harmed(*harms: str) -> pytest.MarkDecorator:
    """Each form with each of the harms that can be done to it."""
    pairs = [(form, harm) for form in FORMS for harm in harms if form == INT8 or harm not in OF_INT8_ALONE]
    return pytest.mark.parametrize(
        ("form", "harm"), pairs, ids=[f"{form.dtype}-{harm}" for form, harm in pairs]
    )


@harmed("bit", "checksum", "missing", "cut", "link", "scales")
def test_a_broken_tile_that_is_to_be_kept_stops_the_commit_and_names_the_way_out(
    tmp_path: Path, form: Form, harm: str
) -> None:
    store = new_store(tmp_path / "s", form)
    put(store, {0: 0, 1: 1})
    break_shard(store, harm)
    with pytest.raises(CorruptionError, match="shard 0 cannot be extended") as caught:
        put(store, {2: 2})
    assert f"`embedcache repair {store.path}`" in str(caught.value)
    assert EmbeddingStore.open(store.path).committed.tolist() == [True, True, False, False]
    assert not list(store.path.rglob("*.partial"))


@harmed("bit", "checksum", "missing", "cut", "index", "scales", "no scales")
def test_tiles_that_are_given_anew_need_not_be_readable(tmp_path: Path, form: Form, harm: str) -> None:
    store = new_store(tmp_path / "s", form)
    put(store, {0: 0, 1: 1})
    undisturbed = file_bytes(store.path / layout.EMBEDDINGS) | file_bytes(store.path / layout.SCALES)
    break_shard(store, harm)
    whole = {"missing", "cut", "no scales"}
    put(store, {0: 0, 1: 1} if harm in whole else {1: 1} if harm != "index" else {2: 2})
    if harm != "index":
        assert (
            file_bytes(store.path / layout.EMBEDDINGS) | file_bytes(store.path / layout.SCALES) == undisturbed
        )
    fresh = EmbeddingStore.open(store.path)
    assert is_seed(fresh, 0, 0)
    assert is_seed(fresh, 1, 1)


def break_shard(store: EmbeddingStore, harm: str) -> None:
    """Damage what belongs to slot 1 (or the index, or the whole file) of shard 0."""
    path, scales = layout.shard_path(store.path, 0), layout.scales_path(store.path, 0)
    chunk, data = store.form.chunk_bytes, bytearray(path.read_bytes())
    if harm in ("bit", "checksum", "index"):
        at = {"bit": chunk + 99, "checksum": 2 * chunk - 1, "index": 2 * chunk + 3}[harm]
        data[at] ^= 8
        path.write_bytes(data)
    elif harm == "cut":
        path.write_bytes(data[: chunk - 1])
    elif harm == "missing":
        path.unlink()
    elif harm == "link":
        path.rename(store.path.parent / "aside")
        path.symlink_to(store.path.parent / "aside")
    elif harm == "no scales":
        scales.unlink()
    else:
        assert harm == "scales"
        content = bytearray(scales.read_bytes())
        content[CHANNELS * 4 + 5] ^= 1
        scales.write_bytes(content)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s")
    put(store, {0: 0})
    folder = layout.shard_path(store.path, 0).parent
    folder.rename(tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    before = file_bytes(tmp_path / "outside")
    with pytest.raises(CorruptionError, match="link"):
        put(store, {0: 5})
    assert file_bytes(tmp_path / "outside") == before


# ---- what is refused


@pytest.mark.parametrize(
    ("form", "wrong"),
    [
        (FLOAT16, embedding(0).astype(np.float32)),
        (FLOAT16, embedding(0)[:3]),
        (FLOAT16, quantised(0)),
        (INT8, embedding(0)),
        (INT8, Quantised(quantised(0).values.astype(np.int16), quantised(0).scales)),
        (INT8, Quantised(quantised(0).values[:3], quantised(0).scales)),
        (INT8, Quantised(quantised(0).values, quantised(0).scales[:3])),
        (INT8, Quantised(quantised(0).values, quantised(0).scales.astype(np.float64))),
        (INT8, Quantised(np.full((256, 64, 64), -128, np.int8), quantised(0).scales)),
        (INT8, Quantised(quantised(0).values, -quantised(0).scales)),
    ],
)
def test_what_the_store_does_not_keep_is_refused(tmp_path: Path, form: Form, wrong: Any) -> None:
    store = new_store(tmp_path, form)
    with store.writer() as writer, pytest.raises(EmbedcacheError, match=rf"tile 1.*{form.dtype}"):
        writer.commit_shard(0, embeddings={1: wrong}, input_digests={1: DIGEST})


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"embeddings": {1: embedding(1)}, "failed": {1: "odd"}}, "given as two"),
        ({"failed": {N: "odd"}}, "does not belong to shard 0"),
        ({"failed": {-1: "odd"}}, "does not belong to shard 0"),
        ({"skipped": {3: "empty"}}, "number 3 .* has no tile"),
        ({"embeddings": {1: embedding(1)}, "input_digests": {1: "ab"}}, "no SHA-256"),
    ],
)
def test_tiles_that_make_no_sense_are_refused(tmp_path: Path, given: dict[str, Any], why: str) -> None:
    rows = table(N)
    rows[3] = -1
    store = make_store(tmp_path, table=rows, shard_tiles=N)
    whole = {"embeddings": {}, "input_digests": {}} | given
    with store.writer() as writer, pytest.raises(EmbedcacheError, match=why):
        writer.commit_shard(0, **whole)


def test_a_shard_of_many_tiles_has_the_digest_of_its_file(tmp_path: Path) -> None:
    store = new_store(tmp_path, INT8, n=24, shard_tiles=24)
    put(store, {tile: tile for tile in range(24)})
    record = store.shard_record(0)
    assert record is not None
    assert record.digest == f"sha256:{sha256_file(layout.shard_path(tmp_path, 0))}"
    assert all(is_seed(store, tile, tile) for tile in range(24))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    broken, scales = embedding(0).copy(), quantised(0).scales.copy()
    broken[3, 2, 1], scales[3] = value, value
    for form, wrong in ((FLOAT16, broken), (INT8, Quantised(quantised(0).values, scales))):
        store = new_store(tmp_path / form.dtype, form)
        with store.writer() as writer, pytest.raises(EmbedcacheError, match=r"tile 2.*not finite"):
            writer.commit_shard(0, embeddings={2: wrong}, input_digests={2: DIGEST})
        assert not list(store.path.rglob("*.partial"))


# ---- the order of writing, and what a kill leaves


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.dtype)
def test_the_order_of_writing(tmp_path: Path, form: Form) -> None:
    store = new_store(tmp_path, form)
    first, second = [], []
    with store.writer() as writer:
        for steps, tile in ((first, 0), (second, 1)):
            with watched(lambda *step, steps=steps: steps.append(summary(tmp_path, *step))):
                writer.commit_shard(
                    0, embeddings={tile: stored(store, tile)}, input_digests={tile: digest_of(tile)}
                )
    folders = {layout.SCALES: "c/0", layout.EMBEDDINGS: "c/0/0/0"}
    arrays = [layout.SCALES] * (form == INT8) + [layout.EMBEDDINGS]
    staged = ["fsync"] * len(arrays)
    published = {
        array: [f"replace {array}/{folders[array]}/0", f"fsync {array}/{folders[array]}"] for array in arrays
    }
    recorded = ['"kind":"shard"', "fsync"]
    assert [step for step in first if step] == [
        *staged,
        *(step for array in arrays for step in [*made(array, folders[array]), *published[array]]),
        *recorded,
        f"fsync {layout.JOURNAL}",
    ]
    assert [step for step in second if step] == [
        *staged,
        *['"kind":"intent"', "fsync"],
        *(step for array in arrays for step in published[array]),
        *recorded,
    ]


def made(array: str, folder: str) -> list[str]:
    """The steps that make a folder of an array and its parents, each of them durable before the next."""
    steps, parent = [], array
    for name in folder.split("/"):
        steps += [f"mkdir {parent}/{name}", f"fsync {parent}"]
        parent = f"{parent}/{name}"
    return steps


def summary(root: Path, step: str, arguments: tuple[Any, ...]) -> str:
    if step == "write":
        text = b"".join(bytes(piece[:100_000]) for piece in arguments[1])
        return next((kind for kind in ('"kind":"intent"', '"kind":"shard"') if kind.encode() in text), "")
    if step in ("replace", "mkdir", "fsync_folder"):
        return f"{step.removesuffix('_folder')} {arguments[-1].relative_to(root)}"
    return "fsync" if step == "fsync" else ""


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.dtype)
def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, form: Form) -> None:
    store = new_store(tmp_path, form)
    put(store, {0: 0})
    before = file_bytes(tmp_path / layout.EMBEDDINGS) | file_bytes(tmp_path / layout.SCALES)
    with store.writer() as writer, watched(refusing_lines_with("intent")), pytest.raises(StorageError):
        writer.commit_shard(0, embeddings={1: stored(store, 1)}, input_digests={1: DIGEST})
    assert file_bytes(tmp_path / layout.EMBEDDINGS) | file_bytes(tmp_path / layout.SCALES) == before

    def refusing(step: str, _: tuple[Any, ...]) -> None:
        if step in ("fsync", "unlink"):
            raise full_disk()

    with store.writer() as writer, watched(refusing), pytest.raises(StorageError, match="No space"):
        writer.commit_shard(0, embeddings={1: stored(store, 1)}, input_digests={1: DIGEST})
    put(store, {1: 1})
    assert is_seed(store, 1, 1)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.dtype)
@pytest.mark.parametrize("at", ["scales", layout.EMBEDDINGS, '"kind":"shard"'])
def test_after_a_kill_each_tile_is_the_old_one_the_new_one_or_missing(
    tmp_path: Path, form: Form, at: str
) -> None:
    store = new_store(tmp_path, form)
    put(store, {0: 0, 1: 1})
    stop = refusing_lines_with(at) if at.startswith('"') else refusing_rename_to(at)
    renamed = at.startswith('"') or (at == "scales" and form == FLOAT16)
    torn = at == layout.EMBEDDINGS and form == INT8
    with store.writer() as writer, watched(stop):
        try:
            replace_and_add(writer, store)
            assert renamed
        except StorageError:
            assert at != "scales" or form == INT8
    between = EmbeddingStore.open(tmp_path)
    assert is_seed(between, 0, 0)
    if not torn:
        assert is_seed(between, 1, 11 if renamed else 1)
    with between.writer():
        pass
    assert not between.state.intents
    assert is_seed(between, 0, 0)
    assert between.committed.tolist() == [True, not torn, renamed, False]
    if not torn:
        assert is_seed(between, 1, 11 if renamed else 1)
    put(between, {1: 11, 2: 2})
    again = new_store(tmp_path / "again", form)
    put(again, {0: 0, 1: 11, 2: 2})
    for name in (layout.EMBEDDINGS, layout.SCALES):
        assert file_bytes(between.path / name) == file_bytes(again.path / name)


def replace_and_add(writer: Any, store: EmbeddingStore) -> None:
    writer.commit_shard(
        0,
        embeddings={1: stored(store, 11), 2: stored(store, 2)},
        input_digests={1: digest_of(11), 2: digest_of(2)},
    )


def interrupted(path: Path, form: Form = FLOAT16) -> EmbeddingStore:
    """A store whose shard was replaced by a writer that was killed before it recorded that."""
    store = new_store(path, form)
    put(store, {0: 0, 1: 1})
    with (
        store.writer() as writer,
        watched(refusing_lines_with('"kind":"shard"')),
        pytest.raises(StorageError),
    ):
        replace_and_add(writer, store)
    return EmbeddingStore.open(path)


@pytest.mark.parametrize("harm", ["bit", "missing"])
def test_a_file_that_is_neither_stays_undecided_and_what_it_holds_still_counts(
    tmp_path: Path, harm: str
) -> None:
    store = interrupted(tmp_path)
    break_shard(store, harm)
    with store.writer():
        pass
    assert list(store.state.intents) == [0]
    put(store, {1: 11} if harm == "bit" else {0: 0, 1: 11})
    assert not store.state.intents
    assert is_seed(store, 0, 0)
    assert is_seed(store, 1, 11)
    assert store.committed.tolist() == [True, True, False, False]


def test_a_tile_is_kept_from_the_file_that_was_announced_although_it_lies_elsewhere_there(
    tmp_path: Path,
) -> None:
    store = new_store(tmp_path)
    put(store, {1: 1, 2: 2})
    with (
        store.writer() as writer,
        watched(refusing_lines_with('"kind":"shard"')),
        pytest.raises(StorageError),
    ):
        writer.commit_shard(0, embeddings={0: embedding(0)}, input_digests={0: digest_of(0)})
    path = layout.shard_path(tmp_path, 0)
    data = bytearray(path.read_bytes())
    data[77] ^= 1  # tile 0: the file is now neither
    path.write_bytes(data)
    put(store, {3: 3})
    assert store.committed.tolist() == [False, True, True, True]
    assert all(is_seed(store, tile, tile) for tile in (1, 2, 3))


def test_a_source_does_not_change_while_a_shard_is_undecided(tmp_path: Path) -> None:
    store = interrupted(tmp_path)
    break_shard(store, "missing")
    with store.writer() as writer, pytest.raises(CorruptionError, match="embedcache repair"):
        writer.change_source({"kind": "npy"}, (), np.zeros(N, np.bool_))


def test_tiles_that_a_changed_source_took_back_stay_away(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    put(store, {0: 0, 1: 1})
    with store.writer() as writer:
        writer.change_source(None, (), np.array([True, False, False, False]))
    assert store.committed.tolist() == [False, True, False, False]
    assert is_seed(store, 1, 1)
    with (
        store.writer() as writer,
        watched(refusing_rename_to(layout.EMBEDDINGS)),
        pytest.raises(StorageError),
    ):
        writer.commit_shard(0, embeddings={3: embedding(3)}, input_digests={3: digest_of(3)})
    store = EmbeddingStore.open(tmp_path)
    with store.writer():
        pass  # the older file it is, and tile 0 of it does not come back
    assert store.committed.tolist() == [False, True, False, False]
    put(store, {3: 3})
    assert store.committed.tolist() == [False, True, False, True]
    assert shard_size(store) == FLOAT16.shard_bytes(2, N)


def test_scales_of_a_part_of_the_shard_leave_the_other_rows_alone(tmp_path: Path) -> None:
    store = new_store(tmp_path, INT8)
    put(store, {2: 2})
    put(store, {0: 0})
    scales = read_scales(tmp_path, 0, N)
    assert scales.intact
    record = store.shard_record(0)
    assert isinstance(record, ShardRecord)
    assert record.scale_crcs is not None
    assert [scales.crc(slot) for slot in record.slots.tolist()] == record.scale_crcs.tolist()
    assert np.isnan(scales.rows[[1, 3]]).all()


@pytest.mark.parametrize("form", FORMS)
def test_embeddings_that_a_changed_source_took_back_leave_the_file(tmp_path: Path, form: Form) -> None:
    store = new_store(tmp_path / "s.zarr", form)
    put(store, {0: 1, 1: 2})
    for stale, left in ((0, {1: 2}), (1, {})):
        with store.writer() as writer:
            writer.change_source(None, (), np.arange(N) == stale)
            writer.commit_shard(0, embeddings={}, input_digests={}, skipped={stale: "empty"})
        array = zarr.open_group(store.path, mode="r")["image_embeddings"]
        empty = np.isnan if form == FLOAT16 else lambda values: values == -128
        assert empty(array[0]).all()
        assert bool(empty(array[1]).all()) == (not left)
        assert all(is_seed(store, tile, seed) for tile, seed in left.items())
        assert store.skipped[stale]
    assert not layout.shard_path(store.path, 0).exists()
    assert EmbeddingStore.open(store.path).status().bytes == 0


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.dtype)
def test_a_file_that_is_replaced_is_announced_although_none_of_its_tiles_counts(
    tmp_path: Path, form: Form
) -> None:
    store = new_store(tmp_path, form)
    put(store, {0: 0, 1: 1})
    with store.writer() as writer:
        writer.change_source(None, (), np.array([True, True, False, False]))
        with watched(refusing_lines_with('"kind":"shard"')), pytest.raises(StorageError):
            writer.commit_shard(0, embeddings={0: stored(store, 10)}, input_digests={0: digest_of(10)})
    store = EmbeddingStore.open(tmp_path)
    assert list(store.state.intents) == [0]
    assert not store.committed.any()
    with store.writer():
        pass
    assert not store.state.intents
    assert store.committed.tolist() == [True, False, False, False]
    assert is_seed(store, 0, 10)


def test_a_reason_that_is_added_leaves_the_numerics_of_the_embeddings_as_they_were(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.writer() as writer:
        writer.decide_numerics({"threads": 1})
        writer.commit_shard(0, embeddings={0: embedding(0)}, input_digests={0: DIGEST})
    with store.writer() as writer:
        writer.decide_numerics({"threads": 8}, allow=True)
        writer.commit_shard(0, embeddings={}, input_digests={}, failed={1: "odd"})
        assert numerics_of(store) == 0
        writer.commit_shard(0, embeddings={2: embedding(2)}, input_digests={2: DIGEST})
        assert numerics_of(store) == 1


def numerics_of(store: EmbeddingStore) -> int | None:
    record = store.shard_record(0)
    assert record is not None
    return record.numerics
