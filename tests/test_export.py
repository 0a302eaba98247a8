"""What export promises: a file that stock segment-anything loads strictly, with our masks, and back again."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from result_samples import make_checkpoint
from torch import nn
from training_stores import make_store as made_up_store

import embedcache as ec
from embedcache.cli.app import app, register
from embedcache.errors import ConfigError, InputError, MismatchError, WeightsError
from embedcache.progress import Silent
from embedcache.results import predict
from embedcache.results.export import export
from embedcache.sam import Decoder, random_weights
from embedcache.sam.decoder_file import read_decoder_file
from embedcache.sam.parts import modeling, register_encoder
from embedcache.sam.weights import tensors_digest
from embedcache.store import EmbeddingStore
from embedcache.train import TrainOptions
from embedcache.train.checkpoint import Checkpoint
from embedcache.train.sam_file import decoder_of_sam_file, is_sam_file
from embedcache.train.start import starting_model

SIDE = 1024
POINTS = [[300.0, 400.0], [700.0, 250.0]]


class Teller(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """One smooth image of SAM's own size, encoded by vit_tiny in float32."""
    folder = tmp_path_factory.mktemp("export")
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    pixels = np.stack([x, y, np.sin(9 * x * y) ** 2], axis=-1) * 255
    (folder / "images").mkdir()
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / "one.png")
    return ec.encode(
        folder / "images",
        store=folder / "s.zarr",
        model="vit_tiny",
        tile=SIDE,
        precision="fp32",
        window="0:255",
    )


@pytest.fixture(scope="module")
def checkpoint(store: EmbeddingStore, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A decoder of other weights than the store's, as a run would leave it."""
    return trained(tmp_path_factory.mktemp("run") / "best.safetensors", store)


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("out") / "sam.pth")


def trained(path: Path, store: EmbeddingStore, **changes: object) -> Checkpoint:
    values = {
        "recipe": dict(store.provenance["recipe"]),
        "encoder_digest": store.spec.encoder_digest,
        "model_type": store.spec.model_type,
        "state": Decoder.random(5).state_dict(),
    }
    return make_checkpoint(path, store, **(values | changes))


def stock() -> ModuleType:
    """segment-anything's own ``build_sam``, which needs no torchvision by itself."""
    path = Path(str(modeling.__file__)).parents[1] / "build_sam.py"
    spec = importlib.util.spec_from_file_location("segment_anything.build_sam", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stored(nn.Module):
    """An image encoder whose embeddings are kept in float16, as a store keeps them."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.img_size = SIDE

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images).half().float()


@pytest.fixture(scope="module")
def sam(exported: Path) -> nn.Module:
    """The exported file, loaded strictly by segment-anything's own code into its own classes."""
    found = stock()._build_sam(
        encoder_embed_dim=192,
        encoder_depth=2,
        encoder_num_heads=3,
        encoder_global_attn_indexes=[1],
        checkpoint=str(exported),
    )
    found.image_encoder = Stored(found.image_encoder)
    return found


@pytest.mark.parametrize("asked", ["points", "box", "none"])
def test_stock_segment_anything_gives_our_masks(
    asked: str, sam: nn.Module, store: EmbeddingStore, checkpoint: Checkpoint
) -> None:
    (image,) = (store.predictor(0, ec.open_volume(store.provenance["source"])).image,)
    question: dict[str, object] = {
        "image": torch.from_numpy(np.array(image)).permute(2, 0, 1).float(),
        "original_size": (SIDE, SIDE),
    }
    ours = ec_predictor(store, checkpoint)
    if asked == "points":
        question |= {"point_coords": torch.tensor([POINTS]), "point_labels": torch.tensor([[1, 0]])}
        want = ours.predict(POINTS, [1, 0], multimask_output=True, return_logits=True)
    elif asked == "box":
        question["boxes"] = torch.tensor([[200.0, 100.0, 800.0, 900.0]])
        want = ours.predict(box=[200, 100, 800, 900], multimask_output=True, return_logits=True)
    else:
        want = ours.predict(multimask_output=True, return_logits=True)
    (answer,) = sam([question], multimask_output=True)
    np.testing.assert_allclose(answer["low_res_logits"][0], want[2], atol=1e-4)
    np.testing.assert_allclose(answer["iou_predictions"][0], want[1], atol=1e-4)
    sure = np.abs(want[0]) > 1e-4
    np.testing.assert_array_equal(answer["masks"][0].numpy()[sure], (want[0] > 0)[sure])


def ec_predictor(store: EmbeddingStore, checkpoint: Checkpoint):  # type: ignore[no-untyped-def]
    from embedcache.store.predictor import StorePredictor

    return StorePredictor(checkpoint.decoder(), store[0], store.tile(0))


def test_stock_segment_anything_predicts_what_predict_does(
    sam: nn.Module, store: EmbeddingStore, checkpoint: Checkpoint
) -> None:
    image = store.predictor(0, ec.open_volume(store.provenance["source"])).image
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    (answer,) = sam([{"image": pixels, "original_size": (SIDE, SIDE)}], multimask_output=False)
    logits = sam.postprocess_masks(answer["low_res_logits"], (SIDE, SIDE), (SIDE, SIDE))[0, 0]
    np.testing.assert_allclose(torch.sigmoid(logits), predict(store, checkpoint).probabilities(0), atol=1e-4)


def test_with_the_threshold_that_export_says_stock_gives_the_runs_masks(
    tmp_path: Path, sam: nn.Module, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(tmp_path / "a.safetensors", store)
    chances = predict(store, plain).probabilities(0)
    level = float(np.median(chances))
    cut = float(np.log(level / (1 - level)))
    run, teller = trained(tmp_path / "b.safetensors", store, threshold=cut), Teller()
    export(run, tmp_path / "sam.pth", progress=teller)
    assert f"sam.mask_threshold = {cut:g}" in teller.lines[0]
    image = store.predictor(0, ec.open_volume(store.provenance["source"])).image
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    monkeypatch.setattr(sam, "mask_threshold", cut)
    (answer,) = sam([{"image": pixels, "original_size": (SIDE, SIDE)}], multimask_output=False)
    sure = np.abs(chances - level) > 1e-4
    found, want = answer["masks"][0, 0].numpy(), predict(store, run)[0]
    np.testing.assert_array_equal(found[sure], want[sure])
    assert 0.3 < want.mean() < 0.7


def test_the_image_encoder_is_the_one_of_the_base_to_the_byte(exported: Path) -> None:
    base, written = random_weights("vit_tiny", 0), torch.load(exported, weights_only=True)
    assert list(written) == list(base.state)
    for name, tensor in base.encoder_state().items():
        assert torch.equal(written[name], tensor), name
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    assert exported.stat().st_size < 1.02 * sum(tensor.nbytes for tensor in written.values()) + 2**20


def test_a_base_of_fewer_bits_becomes_float32_and_is_still_known(
    tmp_path: Path, store: EmbeddingStore, checkpoint: Checkpoint
) -> None:
    base = {name: tensor.half() for name, tensor in random_weights("vit_tiny", 3).state.items()}
    torch.save(base, tmp_path / "base.pth")
    digest = tensors_digest({n: t for n, t in base.items() if n.startswith("image_encoder.")})
    path = export(
        trained(tmp_path / "c.safetensors", store, encoder_digest=digest),
        tmp_path / "out.pth",
        merge=tmp_path / "base.pth",
    )
    assert {tensor.dtype for tensor in torch.load(path, weights_only=True).values()} == {torch.float32}
    assert read_decoder_file(path).is_of(digest)


def test_an_exported_file_is_a_start_for_training_and_step_0_is_the_checkpoint(
    exported: Path, store: EmbeddingStore, checkpoint: Checkpoint
) -> None:
    assert is_sam_file(exported)
    assert not is_sam_file(checkpoint.path)
    start = starting_model(TrainOptions(init=exported), (store,), Silent().say).state_dict()
    assert start.keys() == checkpoint.state.keys()
    assert all(torch.equal(start[name], checkpoint.state[name]) for name in start)


def test_a_start_whose_encoder_is_another_is_refused_and_one_without_is_said(
    tmp_path: Path, store: EmbeddingStore
) -> None:
    other = random_weights("vit_tiny", 9)
    torch.save(other.state, tmp_path / "other.pth")
    with pytest.raises(MismatchError, match="another image encoder"):
        decoder_of_sam_file(tmp_path / "other.pth", store, Silent().say)
    torch.save(other.decoder_state(), tmp_path / "decoder.pth")
    teller = Teller()
    decoder_of_sam_file(tmp_path / "decoder.pth", store, teller.say)
    assert "not checked" in teller.lines[0]
    torch.save({"prompt_encoder.x": torch.zeros(3)}, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="no SAM decoder"):
        decoder_of_sam_file(tmp_path / "none.pth", store, Silent().say)


def test_another_encoder_is_refused_and_nothing_is_written(
    tmp_path: Path, store: EmbeddingStore, checkpoint: Checkpoint
) -> None:
    torch.save(random_weights("vit_tiny", 9).state, tmp_path / "other.pth")
    with pytest.raises(MismatchError, match="another image encoder") as caught:
        export(checkpoint, tmp_path / "out.pth", merge=tmp_path / "other.pth")
    assert store.spec.encoder_digest in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.pth"]
    teller = Teller()
    export(
        checkpoint, tmp_path / "out.pth", merge=tmp_path / "other.pth", allow_mismatch=True, progress=teller
    )
    assert any("as you wish" in line for line in teller.lines)


def test_an_older_checkpoint_knows_its_encoder_by_its_store_or_by_its_space(
    tmp_path: Path, store: EmbeddingStore
) -> None:
    old = {"encoder_digest": "", "model_type": ""}
    export(trained(tmp_path / "a.safetensors", store, **old), tmp_path / "a.pth")
    gone = trained(tmp_path / "b.safetensors", store, stores=("/nowhere.zarr",), **old)
    export(gone, tmp_path / "b.pth")
    torch.save(random_weights("vit_tiny", 9).state, tmp_path / "other.pth")
    with pytest.raises(MismatchError, match="does not say which"):
        export(gone, tmp_path / "c.pth", merge=tmp_path / "other.pth")


def test_an_encoder_that_is_gone_is_asked_for(tmp_path: Path, store: EmbeddingStore) -> None:
    recipe = {**store.provenance["recipe"], "checkpoint": str(tmp_path / "gone.pth")}
    with pytest.raises(WeightsError, match=r"cannot be found.*gone\.pth") as caught:
        export(trained(tmp_path / "c.safetensors", store, recipe=recipe), tmp_path / "out.pth")
    assert "--merge" in str(caught.value.hint)


def test_an_adapter_is_refused_by_name(tmp_path: Path, store: EmbeddingStore) -> None:
    state = Decoder.random(5).state_dict() | {"adapter.down.weight": torch.zeros(1)}
    with pytest.raises(ConfigError, match="holds an adapter"):
        export(trained(tmp_path / "c.safetensors", store, state=state, adapter=True), tmp_path / "out.pth")


def test_an_encoder_of_ones_own_is_refused(tmp_path: Path) -> None:
    register_encoder("own_one", lambda: nn.Conv2d(3, 256, 16, 16))
    store = made_up_store(tmp_path / "s.zarr", np.ones((1, 64, 64), np.uint8))
    with pytest.raises(ConfigError, match="of your own"):
        export(trained(tmp_path / "c.safetensors", store, model_type="own_one"), tmp_path / "out.pth")


@pytest.mark.parametrize("to", ["hf", "onnx", "nonsense"])
def test_other_layouts_are_refused(to: str, tmp_path: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=f"--to {to}"):
        export(checkpoint, tmp_path / "out.pth", to=to)


def test_what_exists_is_not_replaced(tmp_path: Path, checkpoint: Checkpoint) -> None:
    (tmp_path / "out.pth").write_bytes(b"dear to somebody")
    with pytest.raises(InputError, match="exists"):
        export(checkpoint, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == b"dear to somebody"
    with pytest.raises(ConfigError, match=r"ends in \.pth"):
        export(checkpoint, tmp_path / "out.zarr")


class Hostile:
    """A pickle of it would write a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["hostile", "text", "model", "missing"])
def test_a_base_that_is_no_sam_is_refused_and_never_executed(
    kind: str, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    base = tmp_path / "base.pth"
    if kind == "hostile":
        base.write_bytes(pickle.dumps(Hostile(tmp_path / "executed")))
    elif kind == "text":
        base.write_text("no checkpoint")
    elif kind == "model":
        torch.save({"layer.weight": torch.zeros(3)}, base)
    with pytest.raises(WeightsError):
        export(checkpoint, tmp_path / "out.pth", merge=base)
    assert {path.name for path in tmp_path.iterdir()} <= {"base.pth"}


def test_the_command_prints_one_object(tmp_path: Path, checkpoint: Checkpoint) -> None:
    register()
    words = ["export", str(checkpoint.path), "--output", str(tmp_path / "sam.pth"), "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    found = json.loads(done.stdout)
    assert Path(found["output"]).stat().st_size == found["bytes"]
    assert (found["to"], found["threshold"]) == ("sam", 0.0)
