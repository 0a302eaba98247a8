"""What opens as a volume: each row of the table opens, and the docs and the errors show this table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from format_samples import MAKERS

from embedcache.errors import VolumeError
from embedcache.volume import open_volume
from embedcache.volume.formats import FORMATS, Format, format_key, formats_table, known_formats

WHOLE = slice(None)
PAGE = Path(__file__).parents[1] / "docs" / "volumes.md"


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.path)
def test_every_row_of_the_table_opens(tmp_path: Path, row: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = MAKERS[row.path](tmp_path)
    with sample.there(monkeypatch) as source, open_volume(source, **sample.options) as volume:
        assert volume.uniform == (row.opens_as == "array")
        assert volume.dtype == sample.pixels.dtype
        assert row.opens_as == "collection" or volume.n_planes == len(sample.pixels)
        for plane, expected in enumerate(sample.pixels):
            np.testing.assert_array_equal(volume.read(plane, WHOLE, WHOLE), expected)
        assert format_key(volume.kind) in known_formats()


def test_no_sample_is_of_a_row_that_the_table_lost() -> None:
    assert set(MAKERS) == {row.path for row in FORMATS}
    assert len({row.path for row in FORMATS}) == len(FORMATS)


def test_the_table_of_the_docs_is_the_table_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition("<!-- formats -->\n")[2].partition("<!-- /formats -->")[0] == formats_table()


def test_each_format_has_a_row_and_names_what_must_be_installed() -> None:
    rows = formats_table().splitlines()[2:]
    assert len(rows) == len(FORMATS)
    for row, item in zip(rows, FORMATS, strict=True):
        assert item.path in row
        assert (f"embedcache[{item.extra}]" in row) == (item.extra is not None)


def test_a_path_of_no_known_format_is_refused_with_all_that_are(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no volume")
    with pytest.raises(VolumeError) as caught:
        open_volume(tmp_path / "notes.txt")
    assert known_formats() in str(caught.value.hint)
    assert known_formats().count("TIFF") == 1


@pytest.mark.parametrize(("option", "value"), [("image", "ir"), ("anon", True)])
def test_options_that_do_not_apply_are_refused(tmp_path: Path, option: str, value: object) -> None:
    (tmp_path / "v.npy").write_bytes(b"")
    with pytest.raises(VolumeError, match=f"--{option}"):
        open_volume(tmp_path / "v.npy", **{option: value})  # type: ignore[arg-type]
