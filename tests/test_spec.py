"""The spec: what changes the fingerprint, what changes the embedding space, and how a difference is named."""

from __future__ import annotations

import json

import pytest
from store_samples import spec

from embedcache.errors import InputError, MismatchError
from embedcache.store import EncodeSpec
from embedcache.volume.preprocess import Preprocess
from embedcache.volume.tiles import TileGrid

CHANGES = {
    "model_type": "vit_b",
    "encoder_digest": "sha256:" + "1" * 64,
    "precision": "bf16",
    "preprocess": Preprocess("adjacent:1", (0.0, 255.0)),
    "volume": {"kind": "npy", "shape": [6, 32, 32], "dtype": "uint8"},
    "grid": TileGrid(32, 8),
    "statistics": {"mean": 12.5, "deviation": 3.0},
}
SPACE = {"model_type", "encoder_digest", "precision", "preprocess"}


@pytest.mark.parametrize("name", CHANGES)
def test_each_field_alone_changes_the_fingerprint_and_is_named(name: str) -> None:
    other = spec(**{name: CHANGES[name]})
    assert other.fingerprint != spec().fingerprint
    assert {field.split(".")[0] for field in spec().differences(other)} == {name}


@pytest.mark.parametrize("name", CHANGES)
def test_only_what_gives_an_embedding_its_meaning_changes_the_embedding_space(name: str) -> None:
    other = spec(**{name: CHANGES[name]})
    assert (other.embedding_space != spec().embedding_space) == (name in SPACE)


def test_a_difference_is_named_leaf_by_leaf_with_both_values() -> None:
    other = spec(preprocess=Preprocess("repeat", (0.0, 128.0)), grid=TileGrid(64))
    differences = spec().differences(other)
    assert differences["preprocess.window"] == ([0.0, 255.0], [0.0, 128.0])
    assert differences["grid.tile"] == (32, 64)
    assert len(differences) == 2


def test_a_spec_survives_a_file() -> None:
    again = EncodeSpec.from_dict(json.loads(json.dumps(spec().to_dict())))
    assert again.fingerprint == spec().fingerprint
    assert again.differences(spec()) == {}


def test_tuples_and_lists_in_the_volume_are_the_same_identity() -> None:
    listed, tupled = spec(volume={"shape": [5, 32, 32]}), spec(volume={"shape": (5, 32, 32)})
    assert listed.fingerprint == tupled.fingerprint
    assert listed.differences(tupled) == {}


def test_the_digests_of_a_known_spec_never_change() -> None:
    assert spec().fingerprint == "sha256:c0a44f28649ac984ed20f53770d0439874298f7032cfc318a1595cf627f15622"
    assert spec().embedding_space == "sha256:554e2870b4db86b1fac1d6b1b7b780e0bd274ba5aaad1eee5dcc73f1a4a1aac3"


def test_figures_of_the_volume_are_named_only_where_there_are_any() -> None:
    figures = {"mean": 12.5, "deviation": 3.0}
    assert "statistics" not in spec().to_dict()
    again = EncodeSpec.from_dict(json.loads(json.dumps(spec(statistics=figures).to_dict())))
    assert again.statistics == figures
    assert again.fingerprint == spec(statistics=figures).fingerprint


def test_a_newer_format_is_refused_with_the_way_out() -> None:
    with pytest.raises(MismatchError, match=r"format 2.*up to 1") as caught:
        EncodeSpec.from_dict(spec().to_dict() | {"format": 2})
    assert "pip install" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"odd": 1},
        {"preprocess": 3},
        {"grid": {}},
        {"volume": []},
        {"statistics": None},
        {"format": "x"},
        {"format": None},
    ],
)
def test_a_malformed_spec_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        EncodeSpec.from_dict(spec().to_dict() | change)


def test_a_dtype_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(InputError, match="float16"):
        spec(store_dtype="float8")
