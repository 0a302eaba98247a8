"""Labels beside a volume: found by the names that scroll people give them, never by guessing between two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from embedcache import encode
from embedcache.cli.app import register, run
from embedcache.errors import ConfigError
from embedcache.train.truth.finding import companions, find_labels

register()


def lay(folder: Path, *names: str) -> Path:
    """Empty files, and folders where a name ends in a slash."""
    for name in names:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder


LEVEL = ("s7/s7.zarr/.zattrs", "s7/s7.zarr/2/")
FRAGMENT = ("f1/surface_volume/00.tif", "f1/ir.png", "f1/inklabels.png", "f1/mask.png")


@pytest.mark.parametrize("source", ["f1", "f1/surface_volume", "f1/surface_volume/", "f1/ir.png"])
def test_a_fragment_has_its_ink_and_its_mask_whichever_part_of_it_was_encoded(
    tmp_path: Path, source: str
) -> None:
    lay(tmp_path, *FRAGMENT)
    found = find_labels(f"{tmp_path}/{source}")
    assert (found.labels, found.supervision) == (tmp_path / "f1/inklabels.png", tmp_path / "f1/mask.png")
    assert find_labels(f"fragment:{tmp_path}/{source}") == found
    assert companions(found.labels) == (found.supervision, None)


@pytest.mark.parametrize(
    ("source", "files", "labels", "supervision", "validation"),
    [
        (  # a volpkg's segment
            "X.volpkg/paths/2023/layers",
            tuple(f"X.volpkg/paths/2023/{n}" for n in ("layers/00.tif", "2023_inklabels.png", "2023_mask.png")),
            "X.volpkg/paths/2023/2023_inklabels.png",
            "X.volpkg/paths/2023/2023_mask.png",
            None,
        ),
        (  # a segment for ink training, a level of its volume
            "s7/s7.zarr/2",
            (*LEVEL, "s7/s7_inklabels.zarr/", "s7/s7_supervision_mask.tif", "s7/s7_validation_mask.tif"),
            "s7/s7_inklabels.zarr",
            "s7/s7_supervision_mask.tif",
            "s7/s7_validation_mask.tif",
        ),
        (  # a segment with several surface volumes
            "s8/surface-volumes/7.9um-54keV-volume-1.zarr",
            ("s8/surface-volumes/7.9um-54keV-volume-1.zarr/", "s8/s8_inklabels.tif", "s8/s8_mask.tif"),
            "s8/s8_inklabels.tif",
            None,
            None,
        ),
        (  # images and labels in two folders, as vesuvius.train has them
            "images/v1.zarr",
            ("images/v1.zarr/", "labels/v1_ink.tif", "labels/v2_ink.tif", "labels/v1_mask.tif"),
            "labels/v1_ink.tif",
            None,
            None,
        ),
        ("a.b.zarr", ("a.b.zarr/", "a.b_inklabels.png"), "a.b_inklabels.png", None, None),
        ("scan.h5:raw/data", ("scan.h5", "scan_labels.tif"), "scan_labels.tif", None, None),
        ("scan.nii.gz", ("scan.nii.gz", "masks/"), "masks", None, None),
        ("images", ("images/", "ink_masks/", "mask.png"), "ink_masks", None, None),
    ],
)  # fmt: skip
def test_known_layouts(
    tmp_path: Path,
    source: str,
    files: tuple[str, ...],
    labels: str,
    supervision: str | None,
    validation: str | None,
) -> None:
    lay(tmp_path, *files)
    found = find_labels(f"{tmp_path}/{source}")
    assert found.labels == tmp_path / labels
    assert found.supervision == (tmp_path / supervision if supervision else None)
    assert found.validation == (tmp_path / validation if validation else None)


def test_the_highest_version_is_taken_by_number_and_it_is_said(tmp_path: Path) -> None:
    lay(tmp_path, "s/s.zarr/", *(f"s/s_inklabels{v}.zarr/" for v in ("", "_v2", "_v10")))
    lay(tmp_path, "s/s_supervision_mask_v3.tif", "s/s_supervision_mask_v11.tif")
    found = find_labels(str(tmp_path / "s/s.zarr"))
    assert found.labels.name == "s_inklabels_v10.zarr"
    assert "version 10 before 0, 2" in found.how
    assert found.supervision is not None
    assert found.supervision.name == "s_supervision_mask_v11.tif", "none of version 10: the highest"
    lay(tmp_path, "s/s_supervision_mask_v10.tif")
    assert companions(found.labels)[0] == tmp_path / "s/s_supervision_mask_v10.tif", "the labels' own version"


def test_two_equally_good_files_are_listed_and_none_is_taken(tmp_path: Path) -> None:
    lay(tmp_path, "s/s.zarr/", "s/s_inklabels.png", "s/s_inklabels.tif", "s/s_supervision_mask.zarr/")
    with pytest.raises(ConfigError) as caught:
        find_labels(str(tmp_path / "s/s.zarr"))
    assert (
        f"  1. {tmp_path / 's/s_inklabels.png'}\n  2. {tmp_path / 's/s_inklabels.tif'}"
        in caught.value.message
    )
    assert "--labels" in (caught.value.hint or "")
    lay(tmp_path, "s/s_supervision_mask.png")
    with pytest.raises(ConfigError, match="supervision_mask") as caught:
        companions(tmp_path / "s/s_inklabels.png")
    assert "--supervision" in (caught.value.hint or "")


def test_labels_of_two_kinds_in_a_labels_folder_are_for_the_user_to_choose(tmp_path: Path) -> None:
    lay(tmp_path, "images/v.zarr/", "labels/v_ink.tif", "labels/v_surface.tif")
    with pytest.raises(ConfigError, match="2 kinds"):
        find_labels(str(tmp_path / "images/v.zarr"))


def test_where_nothing_is_found_every_name_is_told_in_order(tmp_path: Path) -> None:
    lay(tmp_path, *(name for name in FRAGMENT if "inklabels" not in name))
    with pytest.raises(ConfigError, match="No labels were found beside") as caught:
        find_labels(str(tmp_path / "f1/ir.png"))
    hint = caught.value.hint or ""
    told = [hint.index(f" {name}") for name in ("f1_inklabels,", "ir_inklabels,", "inklabels,", "masks,")]
    assert told == sorted(told), "the parchment mask is no label, and what was encoded is not its own label"
    assert "--labels FILE" in hint


def test_the_source_itself_and_files_of_the_file_system_are_no_labels(tmp_path: Path) -> None:
    lay(tmp_path, "labels/1.png", "._labels_inklabels.png", "inklabels")
    with pytest.raises(ConfigError, match="No labels"):
        find_labels(str(tmp_path / "labels"))


def test_beside_an_address_nothing_is_looked_for_and_no_password_is_shown() -> None:
    with pytest.raises(ConfigError, match="address") as caught:
        find_labels("https://me:secret@example.org/s.zarr")
    assert "secret" not in str(caught.value)


def test_a_level_of_labels_has_the_companions_of_its_pyramid(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "s_inklabels.zarr/.zgroup",
        "s_inklabels.zarr/1/",
        "s_supervision_mask.zarr/",
        "1/inklabels.png",
    )
    assert companions(tmp_path / "s_inklabels.zarr/1") == (tmp_path / "s_supervision_mask.zarr", None)


def test_labels_of_other_names_have_no_companions(tmp_path: Path) -> None:
    lay(tmp_path, "truth.tif", "mask.png", "truth_supervision_mask.tif")
    assert companions(tmp_path / "truth.tif") == (None, None)


def test_bare_train_and_evaluate_on_a_fragment_take_its_ink_within_its_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fragment = tmp_path / "frag7"
    (fragment / "surface_volume").mkdir(parents=True)
    ink = np.zeros((64, 192), np.uint8)
    ink[20:40, 10:180] = 255
    mask = np.zeros((64, 192), np.uint8)
    mask[:30] = 255
    for layer in range(3):
        pixels = np.random.default_rng(layer).integers(0, 30000, ink.shape) + 100 * ink.astype(np.int64)
        tifffile.imwrite(fragment / f"surface_volume/{layer:02d}.tif", pixels.astype(np.uint16))
    Image.fromarray(ink).save(fragment / "inklabels.png")
    Image.fromarray(mask).save(fragment / "mask.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMBEDCACHE_DIR", raising=False)
    encode(
        fragment,
        model="vit_tiny",
        checkpoint="random:0",
        tile=64,
        z_range="1:2",
        precision="fp32",
        device="cpu",
    )
    words = ["--steps", "1", "--batch-size", "1", "--device", "cpu", "--logger", "none", "--out", "r"]
    assert run(["train", *words]) == 0
    err = capsys.readouterr().err
    assert f"labels: {fragment}/inklabels.png (found beside the volume)" in err
    assert f"supervision: {fragment}/mask.png (found beside the labels" in err
    options = json.loads((tmp_path / "r/config.json").read_text())["options"]
    assert options["supervision"] == f"{fragment}/mask.png"
    found = []
    for more in ([], ["--supervision", f"{fragment}/mask.png"]):
        assert run(["evaluate", "--checkpoint", "r", "--threshold", "0.0001", "--json", *more]) == 0
        figures = json.loads(capsys.readouterr().out)
        found.append((figures["precision"], figures["recall"]))
    assert found[0] == found[1]
    assert found[0] == pytest.approx((1 / 3, 1.0), abs=0.1), "10 of 30 rows that count are ink"
