"""A store against a model of it: any order of parts, commits, changes, compactions, torn lines and re-openings."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from store_samples import embedding, make_store

from embedcache.store import EmbeddingStore
from embedcache.store.journal import compaction
from embedcache.store.journal.lines import MAIN, shards_file

TILES, SHARD = 6, 2
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
numbers = st.integers(0, TILES - 1)
holds = st.sampled_from([None, range(1), range(1, 3), range(3)])


class StoreMachine(RuleBasedStateMachine):
    """``kept`` is the object of one process that goes on; each step is made by it or by a newly opened store."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(dir=MEMORY)
        self.kept = make_store(Path(self.folder) / "s", n=TILES, shard_tiles=SHARD)
        self.values: dict[int, int] = {}
        self.reasons: dict[int, tuple[str, str]] = {}
        self.wanted: set[int] = set()
        self.numerics: list[dict[str, Any]] = []
        self.certificates: list[dict[str, Any]] = []
        self.volume = self.kept.spec.volume
        self.before = compaction.COMPACT_BYTES, compaction.SNAPSHOT_SHARE
        compaction.SNAPSHOT_SHARE = 0

    def teardown(self) -> None:
        compaction.COMPACT_BYTES, compaction.SNAPSHOT_SHARE = self.before
        shutil.rmtree(self.folder)

    def a_store(self, fresh: bool) -> EmbeddingStore:
        return EmbeddingStore.open(self.kept.path) if fresh else self.kept

    @rule(eager=st.booleans())
    def compaction_begins_or_ends(self, eager: bool) -> None:
        compaction.COMPACT_BYTES = 0 if eager else 1 << 30

    @rule(tile=numbers, seed=st.integers(0, 3), fresh=st.booleans(), hold=holds)
    def encode(self, tile: int, seed: int, fresh: bool, hold: range | None) -> None:
        store, shard = self.a_store(fresh), tile // SHARD
        with store.writer(hold if hold is None or shard in hold else range(shard, shard + 1)) as writer:
            writer.commit_shard(
                shard, embeddings={tile: embedding(seed)}, input_digests={tile: f"{seed:02x}" * 32}
            )
        self.values[tile] = seed
        self.reasons.pop(tile, None)

    @rule(
        tile=numbers,
        kind=st.sampled_from(["skipped", "failed"]),
        why=st.sampled_from("ab"),
        fresh=st.booleans(),
    )
    def say(self, tile: int, kind: str, why: str, fresh: bool) -> None:
        store, shard = self.a_store(fresh), tile // SHARD
        with store.writer(range(shard, shard + 1)) as writer:
            writer.commit_shard(shard, embeddings={}, input_digests={}, **{kind: {tile: why}})
        if tile not in self.values:
            self.reasons[tile] = kind, why

    @rule(tiles=st.sets(numbers), fresh=st.booleans(), hold=holds)
    def want(self, tiles: set[int], fresh: bool, hold: range | None) -> None:
        flags = np.isin(np.arange(TILES), list(tiles))
        with self.a_store(fresh).writer(hold) as writer:
            writer.add_selection({"tiles": sorted(tiles)}, flags)
        self.wanted |= tiles

    @rule(threads=st.integers(1, 2), fresh=st.booleans())
    def decide(self, threads: int, fresh: bool) -> None:
        with self.a_store(fresh).writer() as writer:
            writer.decide_numerics({"threads": threads}, allow=True)
        if {"threads": threads} not in self.numerics:
            self.numerics.append({"threads": threads})

    @rule(fresh=st.booleans())
    def certify(self, fresh: bool) -> None:
        self.certificates.append({"number": len(self.certificates)})
        self.a_store(fresh).add_certificate(self.certificates[-1])

    @rule(tiles=st.sets(numbers), name=st.sampled_from("xyz"), fresh=st.booleans())
    def change(self, tiles: set[int], name: str, fresh: bool) -> None:
        self.volume = {"kind": name}
        with self.a_store(fresh).writer() as writer:
            writer.change_source(self.volume, [], np.isin(np.arange(TILES), list(tiles)))
        for tile in tiles:
            self.values.pop(tile, None)
            if self.reasons.get(tile, ("",))[0] == "skipped":
                del self.reasons[tile]

    @precondition(lambda self: self.values)
    @rule(name=st.sampled_from([MAIN, shards_file(range(1)), shards_file(range(1, 3))]))
    def a_killed_writer_leaves_a_torn_line(self, name: str) -> None:
        path = self.kept.path / "journal" / name
        if path.exists():
            path.write_bytes(path.read_bytes() + b'{"kind":"shard","slots"')

    @rule()
    def refresh(self) -> None:
        self.kept.refresh()

    @invariant()
    def the_store_is_what_was_said(self) -> None:
        store = EmbeddingStore.open(self.kept.path)
        assert np.flatnonzero(store.committed).tolist() == sorted(self.values)
        assert np.flatnonzero(store.wanted).tolist() == sorted(self.wanted)
        assert store.failed == {tile: why for tile, (kind, why) in self.reasons.items() if kind == "failed"}
        assert store.skip_reasons == {t: why for t, (kind, why) in self.reasons.items() if kind == "skipped"}
        assert store.state.numerics == self.numerics
        assert list(store.certificates) == self.certificates
        assert store.spec.volume == self.volume
        found, digests = store.recorded_inputs()
        seeds = [self.values[tile] for tile in found.tolist()]
        assert [row.tobytes().hex() for row in digests] == [f"{seed:02x}" * 32 for seed in seeds]
        for tile, seed in self.values.items():
            assert (store[tile].numpy() == embedding(seed)).all()
            assert store.record(tile).input_digest == f"{seed:02x}" * 32
        for shard in range(store.n_shards):
            record = store.shard_record(shard)
            if record is not None and record.size:
                index = record.index(SHARD, store.form)
                path = store.path / "image_embeddings" / "c" / str(shard) / "0" / "0" / "0"
                data = path.read_bytes()
                assert len(data) == record.size
                assert data[-16 * SHARD - 4 : -4] == index.astype("<u8").tobytes()

    @invariant()
    def what_was_opened_before_still_reads(self) -> None:
        for tile, digest in zip(*self.kept.recorded_inputs(), strict=True):
            if tile in self.values:
                seeds = {int(digest[0]), self.values[tile]}  # as it was then, or as it is now
                assert any((self.kept[tile].numpy() == embedding(seed)).all() for seed in seeds)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
