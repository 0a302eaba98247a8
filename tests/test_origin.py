"""Where data come from: told, known by their place, or said by the texts beside them; else unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedcache.volume.origin import KNOWN, TEXT_BYTES, Origin, origin_of

OPEN, RESTRICTED = "CC BY-NC 4.0", "No redistribution"
DL = "https://dl.ash2txt.org"
BUCKET = "s3://vesuvius-challenge-open-data"


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        (f"{BUCKET}/PHerc0139/volumes/x.zarr", OPEN),
        ("https://data.aws.ash2txt.org/samples/PHerc0139/volumes/x.zarr", OPEN),
        ("https://vesuvius-challenge-open-data.s3.us-east-1.amazonaws.com/PHerc0139/volumes/x.zarr", OPEN),
        ("https://s3.us-east-1.amazonaws.com/vesuvius-challenge-open-data/PHerc0139/volumes/x.zarr", OPEN),
        ("https://example.org/vesuvius-challenge-open-data/x.zarr", ""),
        (f"{DL}/full-scrolls/Scroll5/PHerc172.volpkg/volumes_zarr/20241024131838.zarr", OPEN),
        (
            f"{DL}/full-scrolls/Scroll1/PHercParis4.volpkg/volumes_zarr_standardized/54keV_7.91um_Scroll1A.zarr",
            RESTRICTED,
        ),
        (f"{DL}/full-scrolls/Scroll4/PHerc1667.volpkg/volumes_zarr/20231117161658.zarr/", RESTRICTED),
        (f"{BUCKET}/PHerc0332/volumes/20260411134726-2.400um.zarr", RESTRICTED),
        ("/data/PHercParis3.volpkg/volumes/20230210143520", RESTRICTED),
        ("/data/54keV_7.91um_Scroll1A.zarr", RESTRICTED),
        ("/data/Frag3/surface_volume", RESTRICTED),
        ("/data/fragments/PHercParis2Fr47.volpkg/working/x", RESTRICTED),
        ("/data/scroll1.zarr", ""),
        ("/data/Scroll5.zarr", ""),
        ("/data/MyScroll1", ""),
        ("/data/Frag7", ""),
        ("https://example.org/dl.ash2txt.org/x.zarr", ""),
        ("https://dl.ash2txt.org.example.org/x.zarr", ""),
    ],
)
def test_the_challenges_data_are_known_by_their_place(source: str, licence: str) -> None:
    found = origin_of(source, beside=False)
    assert found.licence.startswith(licence)
    assert bool(found.licence) == bool(found.citation) == bool(found.note) == bool(licence)
    if licence:
        assert "arXiv:2304.02084" in found.citation
        assert "page decides" in found.note


def test_what_the_user_says_wins_and_the_question_stays() -> None:
    found = origin_of("/data/Scroll1", url="u", licence=" ours ", citation="me")
    assert (found.url, found.licence, found.citation) == ("u", "ours", "me")
    assert "inherits the question" in found.note


def test_a_local_copy_is_known_by_the_address_that_was_told() -> None:
    found = origin_of("/data/x.zarr", url=f"{DL}/full-scrolls/Scroll2/PHercParis3.volpkg/x.zarr")
    assert found.licence.startswith(RESTRICTED)


def test_an_address_is_kept_without_its_password() -> None:
    found = origin_of("https://me:secret@example.org/a/x.zarr/?token=1")
    assert found == Origin(url="https://example.org/a/x.zarr")


def test_an_address_that_was_told_is_kept_without_a_password_too() -> None:
    found = origin_of("/data/v.zarr", url="https://me:secret@host/get?id=7")
    assert found.url == "https://host/get?id=7"
    assert origin_of("/data/v.zarr", url="a disk from Anna").url == "a disk from Anna"


@pytest.mark.parametrize("name", ["LICENSE", "LICENCE.txt", "LICENSE_source"])
def test_texts_beside_the_volume_are_kept_and_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("MIT Licence © Ärger\r\nfree\x00\x1b of charge".encode())
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\ntitle: Ink")
    (tmp_path / "images").mkdir()
    for source in (tmp_path / "images", tmp_path / "scan.h5:raw"):
        found = origin_of(str(source))
        assert found.licence == "MIT Licence © Ärger\nfree of charge"
        assert found.citation == "cff-version: 1.2.0\ntitle: Ink"
        assert found.note == f"Text of {name} and CITATION.cff, which lay beside the volume."
    told = origin_of(str(tmp_path / "images"), licence="CC0")
    assert (told.licence, told.note) == ("CC0", "Text of CITATION.cff, which lay beside the volume.")


def test_the_text_beside_a_fragment_is_that_of_its_surface_volume(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("of the whole set")
    surface = tmp_path / "f1" / "surface_volume"
    surface.mkdir(parents=True)
    assert origin_of(str(surface)).licence == "of the whole set"
    (surface.parent / "LICENCE").write_text("of this one")
    assert origin_of(str(surface)).licence == "of this one"


def test_a_long_text_is_cut_and_what_is_no_text_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "LICENCE").mkdir()
    (tmp_path / "LICENSE.md").write_text("")
    (tmp_path / "LICENSE.txt").write_text("é" * TEXT_BYTES)
    found = origin_of(str(tmp_path / "x.tif"))
    assert found.licence == "é" * (TEXT_BYTES // 2) + "\n…"


def test_nothing_known_is_empty(tmp_path: Path) -> None:
    assert origin_of(str(tmp_path / "x.zarr")) == Origin()
    assert origin_of("") == Origin()  # not what lies in the current folder


def test_an_origin_comes_back_from_json_and_older_records_are_empty() -> None:
    found = Origin("u", "l", "c", "n")
    assert Origin.from_dict(found.to_dict()) == found
    assert Origin.from_dict({"licence": None}) == Origin()


def test_what_is_known_says_that_the_datas_own_page_decides() -> None:
    assert all("page decides" in one.note and "page decides" in one.citation for one in KNOWN)
