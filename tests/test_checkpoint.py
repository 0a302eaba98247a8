"""Checkpoints: load only what was saved, unchanged, and fit only their own embedding space."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_stores import blob_labels, make_store

from embedcache.errors import CorruptionError, MismatchError, WeightsError
from embedcache.files import canonical_json
from embedcache.sam.decoder import Decoder, Prompts
from embedcache.train.adapter import AdaptedDecoder
from embedcache.train.checkpoint import Checkpoint, check_space
from embedcache.train.checkpoint_file import content_digest


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(
        path=None,
        state=Decoder.random(1).state_dict(),
        embedding_space="sha256:" + "a" * 64,
        recipe={"model": "vit_tiny", "tile": 64, "window": "0:255"},
        task="semantic",
        prompts="none",
        objects="whole",
        threshold=-0.6190,
        split={"kind": "planes", "val": [[0, [1, 2]]]},
        stores=("/data/s.zarr",),
        labels=("/data/l.zarr",),
        step=20,
        metric="dice",
        value=0.5,
        prompt_source="free",
        untrained=True,
        fingerprints=("sha256:" + "b" * 64,),
        encoder_digest="sha256:" + "c" * 64,
        model_type="vit_tiny",
        settings={"lr": 1e-4, "steps": None},
        ema=0.999,
    )


def test_what_is_loaded_is_what_was_saved(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "best.safetensors")
    again = Checkpoint.load(path)
    assert replace(again, path=None, state={}) == replace(checkpoint, state={})
    assert again.path == path
    assert set(again.state) == set(checkpoint.state)
    assert all(torch.equal(again.state[name], tensor) for name, tensor in checkpoint.state.items())
    assert replace(Checkpoint.load(tmp_path), state={}) == replace(
        again, state={}
    )  # a run's folder is enough


def test_the_loaded_decoder_answers_as_the_saved_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    embedding = torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(0))
    again = Checkpoint.load(checkpoint.save(tmp_path / "c.safetensors"))
    models = [checkpoint.decoder(), again.decoder(), again.model()]
    with torch.inference_mode():
        answers = [model(embedding, Prompts.none(1)).low_res_logits for model in models]
    assert all(torch.equal(answers[0], answer) for answer in answers)


def test_an_adapter_comes_back_and_its_decoder_is_not_given_without_it(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = AdaptedDecoder.around(Decoder.random(1), seed=3)
    adapted = replace(checkpoint, state=model.state_dict(), adapter=True)
    again = Checkpoint.load(adapted.save(tmp_path / "c.safetensors"))
    found = again.model()
    assert isinstance(found, AdaptedDecoder)
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(WeightsError, match="has an adapter"):
        again.decoder()


@pytest.mark.parametrize("offset", [0, 6, 8, 9, 26, 60, 400, 20_000, -1000])
def test_a_single_changed_bit_is_corruption_wherever_it_lies(
    checkpoint: Checkpoint, tmp_path: Path, offset: int
) -> None:
    path = checkpoint.save(tmp_path / "c.safetensors")
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match=r"c\.safetensors is a damaged checkpoint") as refusal:
        Checkpoint.load(path)
    assert refusal.value.exit_code == 4


def test_a_damaged_checkpoint_of_a_run_names_what_else_may_be_used(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    best, last = (checkpoint.save(tmp_path / f"{name}.safetensors") for name in ("best", "last"))
    (tmp_path / "config.json").write_text("{}")
    best.write_bytes(b"")  # nothing in it tells what it was, but its place does
    with pytest.raises(CorruptionError) as refusal:
        Checkpoint.load(tmp_path)
    assert refusal.value.hint is not None
    assert str(last) in refusal.value.hint
    assert f"--resume --out {tmp_path}" in refusal.value.hint
    (tmp_path / "summary.json").write_text("{}")  # a finished run writes nothing more
    with pytest.raises(CorruptionError) as refusal:
        Checkpoint.load(tmp_path)
    assert "--resume" not in str(refusal.value)


def test_what_is_no_checkpoint_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        Checkpoint.load(tmp_path / "none.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        Checkpoint.load(text)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(2)}, str(foreign))
    with pytest.raises(WeightsError, match="no checkpoint of embedcache"):
        Checkpoint.load(foreign)
    changed = tmp_path / "changed.safetensors"
    save_file(load_file(str(checkpoint.save(changed))), str(changed), metadata={"embedcache": "{}"})
    with pytest.raises(CorruptionError, match="damaged"):
        Checkpoint.load(changed)
    pickled = tmp_path / "model.pth"
    torch.save({"x": torch.zeros(2)}, pickled)
    with pytest.raises(WeightsError):
        Checkpoint.load(pickled)


@pytest.mark.parametrize(
    "facts",
    [
        {"threshold": "0"},
        {"threshold": True},
        {"stores": [1]},
        {"recipe": []},
        {"split": None},
        {"step": 1.5},
        {"settings": []},
        {"adapter": 0},
        {"fingerprints": [1]},
    ],
)
def test_a_strangers_description_of_the_wrong_kind_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, facts: dict[str, object]
) -> None:
    path = replace(checkpoint, **facts).save(tmp_path / "best.safetensors")  # with a digest that holds
    with pytest.raises(WeightsError, match="describes itself as no checkpoint"):
        Checkpoint.load(path)


def test_a_description_nested_without_end_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_file(checkpoint.state, path, metadata={"embedcache": "[" * 200_000})
    with pytest.raises(CorruptionError, match="damaged checkpoint"):
        Checkpoint.load(path)


SINCE_2 = ("fingerprints", "encoder_digest", "model_type", "settings", "adapter", "ema")


def _rewritten(checkpoint: Checkpoint, path: Path, number: int, *, without: tuple[str, ...]) -> Path:
    """The file as another version would have written it, with a digest that holds."""
    save = checkpoint.save(path)
    with safe_open(str(save), framework="pt") as stream:
        facts = json.loads(json.loads(stream.metadata()["embedcache"])["facts"])
    facts = {name: value for name, value in facts.items() if name not in without} | {"format": number}
    text = canonical_json(facts)
    content = {"facts": text, "digest": content_digest(checkpoint.state, text)}
    save_file(checkpoint.state, str(path), metadata={"embedcache": canonical_json(content)})
    return path


def test_a_file_of_the_first_format_loads_and_says_less(checkpoint: Checkpoint, tmp_path: Path) -> None:
    old = Checkpoint.load(_rewritten(checkpoint, tmp_path / "old.safetensors", 1, without=SINCE_2))
    silent = {"fingerprints": (), "encoder_digest": "", "model_type": "", "settings": {}, "ema": 0.0}
    assert replace(old, path=None, state={}) == replace(checkpoint, state={}, **silent)


def test_a_file_of_this_format_must_say_all_and_a_newer_one_is_refused_by_name(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="'ema'"):
        Checkpoint.load(_rewritten(checkpoint, tmp_path / "short.safetensors", 2, without=("ema",)))
    with pytest.raises(WeightsError, match="newer embedcache"):
        Checkpoint.load(_rewritten(checkpoint, tmp_path / "newer.safetensors", 3, without=()))


def test_embeddings_of_another_space_are_refused_field_by_field(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    store = make_store(tmp_path / "s.zarr", blob_labels(1, 16, 16), tile=16)
    with pytest.raises(MismatchError, match=r"model: recorded 'vit_b', now 'vit_tiny'") as refusal:
        check_space(replace(checkpoint, recipe={"model": "vit_b"}), store)
    assert refusal.value.exit_code == 3
    check_space(replace(checkpoint, embedding_space=store.embedding_space), store)
