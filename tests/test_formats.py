"""What opens as a volume: the table of the docs, and what an error message lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedcache.errors import VolumeError
from embedcache.volume import open_volume
from embedcache.volume.formats import FORMATS, formats_table, known_formats


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
