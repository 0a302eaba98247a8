"""Stage two on real electron micrographs, with SAM's own sizes: what is exported, compared and swept."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from result_samples import make_checkpoint, make_store

import embedcache as ec
from embedcache.results.export import export
from embedcache.sam import Decoder, random_weights
from embedcache.sam.parts import modeling
from embedcache.train.sweep import run_sweep
from embedcache.train.sweep_file import SweepFile
from pipelines import compare_heads, infrared_ink

pytestmark = pytest.mark.real


def test_every_head_learns_and_stands_in_one_table(
    sections: Path,
    capsys: pytest.CaptureFixture[str],
    untrained_at_logit_zero: Callable[[Path, Path, Path], float],
) -> None:
    words = [
        str(sections / "image"),
        str(sections / "label"),
        "--out",
        str(sections / "heads"),
        "--val",
        "04,05",
    ]
    words += ["--model", "vit_tiny", "--checkpoint", "random:0", "--tile", "256", "--views", "none"]
    rows = compare_heads.main(
        [*words, "--steps", "12", "--batch-size", "2", "--lr", "1e-3", "--seeds", "1", "--whole-steps", "0"]
    )
    assert {row["prompt_source"] for row in rows} == {"free"}
    heads = sections / "heads"
    checkpoint = next(heads.rglob("best.safetensors"))
    untrained = untrained_at_logit_zero(heads / "embeddings.zarr", sections / "label", checkpoint)
    for row in rows:
        assert row["dice"] > untrained + 0.05, row["head"]
        assert row["dice"] > rows[0]["untrained"] >= untrained, row["head"]
    assert capsys.readouterr().out.splitlines()[0].startswith("trained")


@pytest.fixture
def written(tmp_path: Path, real_data: Path) -> Path:
    """Windows of 384 × 384 px around the ink of four infrared photographs, laid out as the pipeline wants them."""
    source = real_data / "qumran_ir_ink"
    for name in ("124_001", "124_006", "124_008", "690_018"):
        with Image.open(source / "ink_masks" / f"{name}.png") as mask:
            y, x = (int(np.median(places)) for places in np.nonzero(np.asarray(mask.convert("L"))))
        for kind, ending in (("images", "jpg"), ("ink_masks", "png"), ("parchment_masks", "png")):
            (tmp_path / kind).mkdir(exist_ok=True)
            with Image.open(source / kind / f"{name}.{ending}") as picture:
                left, top = (
                    max(0, min(at - 192, size - 384)) for at, size in zip((x, y), picture.size, strict=True)
                )
                picture.crop((left, top, left + 384, top + 384)).save(tmp_path / kind / f"{name}.png")
    return tmp_path


def test_ink_on_a_photograph_that_was_held_out_is_found_better_than_by_otsus_threshold(written: Path) -> None:
    words = [str(written), "--out", str(written / "out"), "--val", "124_008", "--tile", "384"]
    words += [
        "--model",
        "vit_tiny",
        "--checkpoint",
        "random:0",
        "--steps",
        "40",
        "--batch-size",
        "2",
        "--lr",
        "1e-3",
    ]
    figures = infrared_ink.main(words)
    assert figures["prompt_source"] == "free"
    assert figures["dice_above_otsu"] == figures["dice"] - figures["otsu"]["dice"] > 0.1


def test_a_sweep_finds_the_learning_rate_that_learns(sections: Path) -> None:
    store = ec.encode(sections / "image", store=sections / "s.zarr", model="vit_tiny", tile=256)
    fixed = {"steps": 16, "batch_size": 2, "val": "04,05", "logger": "none"}
    plan = SweepFile("grid", "dice", fixed, {"lr": (1e-6, 1e-3)})
    result = run_sweep(store, sections / "label", plan, out=sections / "sweep")
    assert [row["options"]["lr"] for row in result.rows] == [1e-3, 1e-6]
    assert result.rows[0]["value"] > result.rows[1]["value"] + 0.005


def test_an_exported_vit_b_loads_strictly_into_stock_sam_model_registry(tmp_path: Path) -> None:
    weights = random_weights("vit_b", 0)
    store = make_store(
        tmp_path / "s.zarr", [(64, 64)], model_type="vit_b", encoder_digest=weights.encoder_digest
    )
    checkpoint = make_checkpoint(
        tmp_path / "c.safetensors",
        store,
        recipe={"model": "vit_b", "checkpoint": "random:0"},
        encoder_digest=weights.encoder_digest,
        model_type="vit_b",
    )
    path = export(checkpoint, tmp_path / "sam.pth")
    file = Path(str(modeling.__file__)).parents[1] / "build_sam.py"
    spec = importlib.util.spec_from_file_location("segment_anything.build_sam", file)
    assert spec is not None
    assert spec.loader is not None
    stock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stock)
    sam = stock.sam_model_registry["vit_b"](checkpoint=str(path))
    for name, tensor in Decoder.from_state(checkpoint.state).state_dict().items():
        assert torch.equal(sam.state_dict()[name], tensor), name
    for name, tensor in weights.encoder_state().items():
        assert torch.equal(sam.state_dict()[name], tensor), name
