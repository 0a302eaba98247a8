"""``embedcache info``: what it says is what is there and what encode does, and it never reads much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_samples import MAKERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layout_samples import SURFACE, VALUES, write_fragment, write_ome, write_sparse, write_volpkg
from PIL import Image
from store_samples import make_store
from volume_servers import VolumeServer

from embedcache.cli.app import run
from embedcache.cli.info import sparkline
from embedcache.encode.options import EncodeOptions
from embedcache.encode.survey import selected_tiles, survey
from embedcache.progress import Silent
from embedcache.volume.formats import FORMATS


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run(["info", *map(str, arguments), "--json"]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    return figures


# --- what it says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.path)
def test_info_names_the_row_of_the_table_that_a_volume_was_opened_by(
    tmp_path: Path, row: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = MAKERS[row.path](tmp_path)
    words = [
        word
        for name, value in sample.options.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", value])
    ]
    with sample.there(monkeypatch) as source:
        figures = told(capsys, source, *words)
    assert figures["format"] == row.key
    assert figures["planes"] >= len(sample.pixels)
    assert (figures["height"], figures["width"]) == sample.pixels.shape[1:3]


def test_levels_scale_and_voxel_size_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ome(tmp_path / "54keV_7.91um_Scroll1A.zarr")
    figures = told(capsys, path, "--level", 1)
    assert figures["levels"] == [[6, 30, 40], [3, 15, 20]]
    assert figures["bytes"] == 3 * 15 * 20
    assert (figures["level"], figures["scale"], figures["voxel_size"]) == (1, [2.0] * 3, [7.91] * 3)
    assert set(figures) == {
        "volume", "format", "kind", "planes", "bytes", "height", "width", "sizes_differ", "dtype", "channels",
        "level", "levels", "scale", "voxel_size", "chunks", "origin", "encode_channels", "encode_window", "would",
        "histogram", "thumbnail",
    }  # fmt: skip


def test_people_get_one_line_of_intensities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "v.npy", VALUES)
    assert run(["info", str(tmp_path / "v.npy"), "--tile", "16"]) == 0
    out = capsys.readouterr().out
    assert "76,800 sampled values," in out
    assert "0 NaN)" in out
    assert "write 36 of 36 tiles of 16, 72.0 MiB, channels repeat, window 0:255" in out


def test_heights_of_the_line_are_logarithmic_and_nothing_is_blank() -> None:
    assert sparkline([0, 1, 10**6]) == " ▁█"
    assert sparkline([0, 0]) == "  "
    assert sparkline([5, 5]) == "██"


def test_options_that_encode_refuses_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "v.npy", VALUES)
    for words in (["--z-range", "9:12"], ["--window", "zscore"], ["--thumbnail", "v.jpg"], ["--plane", "6",
                  "--thumbnail", str(tmp_path / "t.png")], ["--image", "ir"]):  # fmt: skip
        assert run(["info", str(tmp_path / "v.npy"), *words]) == 2
    assert not (tmp_path / "t.png").exists()


def test_a_volume_of_one_value_is_told_and_so_is_that_encode_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "v.npy", np.full((2, 30, 40), 7, np.uint16))
    figures = told(capsys, tmp_path / "v.npy", "--thumbnail", tmp_path / "t.png")
    assert "one value makes no window" in figures["would"]["refused"]
    assert (figures["planes"], figures["encode_window"]) == (2, None)
    assert sum(figures["histogram"]["counts"]) == 64 * 30 * 40
    assert run(["info", str(tmp_path / "v.npy")]) == 0
    assert "refuse: " in capsys.readouterr().out
    assert run(["info", str(tmp_path / "v.npy"), "--window", "p1:p99"]) == 2


# --- what encode would do -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tile=st.sampled_from([16, 17, 64, None]),
    overlap=st.integers(0, 15),
    z_range=st.sampled_from([None, "1:4", "::2", "5:"]),
    bbox=st.sampled_from([None, "0:1,0:1", "3:29,20:40"]),
    channels=st.sampled_from([None, "adjacent", "depth:0-1,2-3,4-5"]),
)
def test_the_tiles_it_counts_are_those_that_encode_takes(tmp_path: Path, **wishes: Any) -> None:
    from embedcache.cli.info import _tiles

    if wishes["tile"] is None:
        wishes["overlap"] = 0
    if wishes["channels"] == "depth:0-1,2-3,4-5":
        wishes["z_range"] = None  # one composite plane
    np.save(tmp_path / "v.npy", VALUES)
    options = EncodeOptions(volume=str(tmp_path / "v.npy"), **wishes)
    surveyed = survey(options, Silent())
    wanted = selected_tiles(surveyed.table, surveyed.selection, surveyed.volume)
    there = int((surveyed.table[:, 0] >= 0).sum())
    assert _tiles(surveyed.volume, surveyed.preprocess, options) == (there, int(wanted.sum()))


def test_a_mask_and_a_folder_are_counted_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "v.npy", VALUES)
    mask = np.zeros((30, 40), np.uint8)
    mask[0, 0] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    figures = told(capsys, tmp_path / "v.npy", "--tile", 20, "--mask", tmp_path / "m.png")
    assert (figures["would"]["tiles"], figures["would"]["tiles_selected"]) == (24, 6)
    (tmp_path / "images").mkdir()
    for number, side in enumerate((20, 40)):
        Image.fromarray(VALUES[0][:side, :side]).save(tmp_path / "images" / f"{number}.png")
    assert told(capsys, tmp_path / "images", "--tile", 20)["would"]["tiles"] == 1 + 4


def test_a_window_of_the_whole_volume_is_named_not_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sparse(tmp_path / "v.zarr", (512, 4096, 4096))
    figures = told(capsys, path, "--window", "global_zscore")
    assert (figures["encode_window"], figures["would"]["window"]) == (None, "global_zscore")


# --- what it reads ------------------------------------------------------------------------------------------


def test_the_largest_scroll_is_told_from_a_few_of_its_chunks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sparse(tmp_path / "v.zarr", (75784, 32693, 32693))
    figures = told(capsys, path, "--thumbnail", tmp_path / "t.png")
    assert figures["would"]["tiles"] == 75784 * 32**2
    assert figures["histogram"]["sampled_pixels"] == 16 * 128**2
    assert figures["thumbnail"]["pieces"] == [4, 4]
    assert Image.open(tmp_path / "t.png").size == (512, 512)


def test_of_a_volume_at_an_address_no_more_chunks_are_fetched_than_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDCACHE_CHUNKS", str(tmp_path / "chunks"))
    metadata = (write_sparse(tmp_path / "v.zarr", (75784, 32693, 32693)) / ".zarray").read_bytes()
    with VolumeServer({"7.91um/v.zarr/.zarray": metadata}) as server:
        figures = told(capsys, f"{server.url}/7.91um/v.zarr", "--thumbnail", tmp_path / "t.png")
        assert figures["voxel_size"] == [7.91] * 3
        assert 16 <= sum(server.chunks_asked.values()) <= 16 + 16 + 4  # and a look for a group around it


@pytest.mark.parametrize("path", ["v.zarr", "v.zarr/0/"])
def test_the_picture_is_of_a_coarser_level_also_where_one_array_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    write_ome(tmp_path / "v.zarr", np.resize(VALUES, (2, 1040, 16)))
    figures = told(capsys, f"{tmp_path}/{path}", "--thumbnail", tmp_path / "t.png")
    assert figures["thumbnail"]["level"] == 1
    assert Image.open(tmp_path / "t.png").height == 512


# --- as a user gives it -------------------------------------------------------------------------------------


def test_the_query_of_an_address_goes_along_to_the_other_levels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDCACHE_CHUNKS", str(tmp_path / "chunks"))
    write_ome(tmp_path / "p.zarr", np.resize(VALUES, (2, 1040, 16)))
    with VolumeServer(tmp_path) as server:
        figures = told(capsys, f"{server.url}/p.zarr/0?token=a/b", "--thumbnail", tmp_path / "t.png")
        assert figures["thumbnail"]["level"] == 1
        assert all(request["path"].endswith("?token=a/b") for request in server.seen)


def test_a_fragment_and_a_volpkg_by_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_fragment(tmp_path / "a", SURFACE[:4])
    assert told(capsys, f"fragment:{folder}")["planes"] == 4
    assert set(told(capsys, folder, "--image", "ir")["origin"]) == {"url", "licence", "citation", "note"}
    assert run(["info", str(write_volpkg(tmp_path / "P.volpkg", "1", "2"))]) == 2
    assert "P.volpkg holds 2 volumes:" in capsys.readouterr().err


def test_a_store_is_no_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "s.zarr")
    assert run(["info", str(store.path)]) == 2
    said = capsys.readouterr().err
    assert "is a store of embeddings, not a volume." in said
    assert f"embedcache status {store.path}" in said


def test_status_says_where_the_data_come_from_and_old_stores_say_that_they_do_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = {
        "url": "https://host/v",
        "licence": "CC BY 4.0\n\nlong text",
        "citation": "Who 2026",
        "note": "",
    }
    geometry = {"level": 1, "scale": [2.0] * 3, "voxel_size": [7.91] * 3, "unit": "micrometer"}
    provenance = {"source": "made up", "origin": origin, "geometry": geometry}
    store = make_store(tmp_path / "new.zarr", provenance=provenance)
    assert run(["status", str(store.path), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["origin"], status["geometry"]) == (origin, geometry)
    assert run(["status", str(store.path)]) == 0
    out = capsys.readouterr().out
    for words in ("CC BY 4.0", "Who 2026", "https://host/v", "7.91 × 7.91 × 7.91 µm"):
        assert words in out
    assert "long text" not in out
    assert run(["status", str(make_store(tmp_path / "old.zarr").path)]) == 0
    assert "unknown" in capsys.readouterr().out
