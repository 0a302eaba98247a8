"""Commands in hints run as they are printed: with the options that there are, and paths quoted."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from care_samples import flip, shard
from encode_samples import quick

from embedcache.cli.app import app, register
from embedcache.encode.care.at_hand import require_volume
from embedcache.encode.care.repair import repair
from embedcache.errors import EmbedcacheError, counted
from embedcache.store import EmbeddingStore, layout
from embedcache.store.care.gc import find_garbage
from embedcache.train.truth.needed import encode_command

register()


def commands(text: str) -> list[list[str]]:
    """The commands of ours that a text prints, in words."""
    found = re.findall(r"embedcache ((?:'[^']*'|[^`\n'])*)", text)
    return [shlex.split(words) for words in found]


def parse(words: list[str]) -> click.Context:
    """What the command line makes of a command, which is not run."""
    command = app.get_command(click.Context(app), words[0])
    assert command is not None, words
    return command.make_context(words[0], list(words[1:]))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    np.save(folder / "a scan.npy", np.random.default_rng(0).integers(1, 255, (5, 48, 64), np.uint8))
    quick(folder / "a scan.npy", store=folder / "s")
    return folder


@pytest.fixture
def store(original: Path, tmp_path: Path) -> EmbeddingStore:
    shutil.copytree(original / "s", tmp_path / "my store")
    return EmbeddingStore.open(tmp_path / "my store")


def damage_journal(store: EmbeddingStore) -> None:
    flip(store.path / "journal" / "main.jsonl", 80)
    EmbeddingStore.open(store.path)


def damage_table(store: EmbeddingStore) -> None:
    flip(layout.tiles_path(store.path, 0), 80)
    EmbeddingStore.open(store.path)


def lose_decoder(store: EmbeddingStore) -> None:
    (store.path / layout.DECODER).unlink()
    store.decoder_state()


def damage_embedding(store: EmbeddingStore) -> None:
    flip(shard(store, 0), 80)
    store[0]


def lose_group(store: EmbeddingStore) -> None:
    (store.path / "zarr.json").unlink()
    find_garbage(store.path)


def damage_group(store: EmbeddingStore) -> None:
    path = store.path / "zarr.json"
    path.write_text(path.read_text().replace('"fp32"', '"bf16"'))
    EmbeddingStore.open(store.path)


@pytest.mark.parametrize(
    "damage", [damage_journal, damage_table, lose_decoder, damage_embedding, lose_group, damage_group]
)
def test_what_repair_mends_is_answered_with_repair(
    store: EmbeddingStore, damage: Callable[[EmbeddingStore], object]
) -> None:
    with pytest.raises(EmbedcacheError) as caught:
        damage(store)
    (words,) = commands(caught.value.hint or "")
    assert words[0] == "repair"
    assert parse(words).params["store"] == str(store.path)
    assert "encode again" not in (caught.value.hint or "").lower()


def test_a_store_of_another_recipe_is_named_in_the_hint(store: EmbeddingStore, original: Path) -> None:
    with pytest.raises(EmbedcacheError) as caught:
        EmbeddingStore.create(
            store.path,
            spec=quick(original / "a scan.npy", store=original / "other", window="0:99").store.spec,
            table=store.table,
            decoder_state=store.decoder_state(),
            provenance={},
        )
    assert f"--like {shlex.quote(str(store.path))}" in (caught.value.hint or "")


def test_changed_pixels_under_broken_tiles_can_be_taken_over(
    store: EmbeddingStore, original: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "a scan.npy", np.load(original / "a scan.npy") ^ 1)
    flip(shard(store, 0), 80)
    with pytest.raises(EmbedcacheError) as caught:
        repair(store.path, volume=str(tmp_path / "a scan.npy"), device="cpu")
    (words,) = commands(caught.value.hint or "")
    params = parse(words).params
    assert (params["store"], params["changed"]) == (str(store.path), "reencode")
    assert params["volume"] == str(tmp_path / "a scan.npy")


def test_a_volume_that_is_gone_is_named_by_an_option_that_the_command_has(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    with pytest.raises(EmbedcacheError) as caught:
        require_volume(store, str(tmp_path / "nothing.npy"))
    assert "--against" in (caught.value.hint or "")
    flip(shard(store, 0), 80)
    (line,) = repair(store.path, volume=str(tmp_path / "nothing here.npy"), device="cpu").unmended
    (words,) = commands(line)
    assert parse(words).params["volume"] == str(tmp_path / "nothing here.npy")


def test_the_command_for_missing_tiles_names_the_store(store: EmbeddingStore) -> None:
    (words,) = commands(encode_command(store, np.array([1, 2])))
    params = parse(words).params
    assert (params["store"], params["like"]) == (str(store.path), str(store.path))
    assert params["z_range"] == "1:3"


def test_one_of_a_thing_is_named_in_the_singular() -> None:
    assert [counted(number, "tile") for number in (0, 1, 2)] == ["0 tiles", "1 tile", "2 tiles"]
