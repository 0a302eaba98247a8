"""Turns masks of several fragments into one table of run lengths, and such a table into masks again.

The table is the one of the ink contests: a csv with the header ``Id,Predicted`` and one line per fragment, whose
``Predicted`` holds the run lengths of :mod:`embedcache.results.rle`; an empty mask is an empty cell.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcache.errors import InputError, counted
from embedcache.files import read_error, write_file
from embedcache.results.mask_rows import mask_runs, pictures_in, stem_of
from embedcache.results.output_place import check_place
from embedcache.results.rle import csv_line, encode_runs, read_runs

HEADER = ["Id", "Predicted"]


@dataclass(frozen=True)
class Line:
    """A line of another table: run lengths that are taken as they are."""

    path: str
    name: str
    cell: str

    def __str__(self) -> str:
        return f"Id {self.name} of {self.path}"


Mask = str | Path | npt.NDArray[np.bool_] | Line


def read_submission(path: str | Path) -> dict[str, str]:
    """The cells of a table by their ``Id``, in its order.

    Raises
    ------
    InputError
        When it is no such table: another header, a line of other than two cells, an ``Id`` that is missing or
        there twice, text that is not UTF-8.
    StorageError
        When it cannot be read.
    """
    place = Path(path)
    cells: dict[str, str] = {}
    try:
        with _long_cells(), place.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.reader(stream, strict=True)
            header = next(rows, [])
            if header != HEADER:
                raise InputError(
                    f"{place} begins with {','.join(header)[:60]!r}; expected is Id,Predicted.",
                    hint="That is what the ink contests take, and what predict --output NAME.csv writes.",
                )
            for row in rows:
                name = _id_of(row, place, rows.line_num)
                if name in cells:
                    raise InputError(f"{place}, line {rows.line_num}: Id {name} is there twice.")
                cells[name] = row[1]
    except FileNotFoundError as error:
        raise InputError(f"{place} does not exist.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{place} is no csv ({error}).") from error
    except OSError as error:
        raise read_error(error, place) from error
    return cells


def _id_of(row: list[str], place: Path, line: int) -> str:
    if len(row) != len(HEADER):
        raise InputError(f"{place}, line {line}: {len(row)} cells; expected are 2, Id and Predicted.")
    if not row[0].strip():
        raise InputError(f"{place}, line {line}: the Id is empty.")
    return row[0]


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells may be longer than the 128 KiB that Python's csv takes: a large plane has millions of runs."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def write_submission(path: str | Path, masks: Mapping[str, Mask], *, threshold: float | None = None) -> Path:
    """Write one table of masks.

    Parameters
    ----------
    path : path
        Of the csv; an older one is replaced when the new one is whole.
    masks : mapping of str to (path or ndarray of bool (H, W))
        By ``Id``. A file holds one plane: PNG, TIFF, Zarr, ``.npy``; or it is a csv of one line, whose run lengths
        are taken as they are. It is read by blocks of rows.
    threshold : float, optional
        For files of probabilities: above it is foreground. A mask holds 0 and one other value.

    Returns
    -------
    Path
        Of the csv, absolute.

    Raises
    ------
    InputError
        For an ``Id`` that is empty, a mask of several planes or grey values, and a file that cannot be opened.
    StorageError
        When the disk refuses.
    """
    output = Path(path).absolute()
    if output.suffix.lower() != ".csv":
        raise InputError(f"{output}: a table of run lengths is a .csv.")
    if not masks:
        raise InputError("A submission needs at least one mask.")
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise InputError(f"--threshold is {threshold}; it is a probability between 0 and 1.")
    files = [
        mask.path if isinstance(mask, Line) else str(mask)
        for mask in masks.values()
        if not isinstance(mask, np.ndarray)
    ]
    check_place(output, sources=files, probabilities=False)

    def lines() -> Iterator[bytes]:
        yield csv_line(*HEADER)
        for name, mask in masks.items():
            if not name.strip() or not name.isprintable():
                raise InputError(f"{name!r} is no Id of a mask.")
            yield csv_line(name, _cell(name, mask, threshold))

    write_file(output, lines())
    return output


def _cell(name: str, mask: Mask, threshold: float | None) -> str:
    """The run lengths of one mask."""
    if isinstance(mask, np.ndarray):
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise InputError(
                f"The mask of {name} is {mask.dtype} of shape {mask.shape}; it must be bool (height, width)."
            )
        return encode_runs(mask)
    if isinstance(mask, Line):
        return mask.cell
    if Path(mask).suffix.lower() != ".csv":
        return mask_runs(mask, threshold)
    lines = lines_of(mask)
    if len(lines) != 1:
        raise InputError(f"{mask} holds {counted(len(lines), 'mask')}, and one is to be called {name}.")
    return lines[0].cell


def lines_of(path: str | Path) -> list[Line]:
    """The lines of a table, whose run lengths are checked as far as that goes without the planes' sizes."""
    lines = [Line(str(path), name, cell) for name, cell in read_submission(path).items()]
    for line in lines:
        read_runs(line.cell, where=f"{path}, Id {line.name}")
    return lines


def submit(
    masks: Mapping[str, Mask] | Sequence[str | Path], output: str | Path, *, threshold: float | None = None
) -> Path:
    """Join the masks of several fragments to one table of run lengths, ``Id,Predicted``.

    Parameters
    ----------
    masks : mapping of str to (path or ndarray), or sequence of path
        Masks by their ``Id``. Of a sequence each file's ``Id`` is its name without ending; a csv that ``predict``
        wrote gives all its lines, and a folder of pictures a line for each, under the names that they have.
    output : path
        The csv.
    threshold : float, optional
        For files of probabilities: above it is foreground.

    Returns
    -------
    Path
        Of the csv, absolute.

    Raises
    ------
    InputError
        As :func:`write_submission`; and when two masks have the same ``Id``.
    """
    if isinstance(masks, Mapping):
        return write_submission(output, masks, threshold=threshold)
    listed = [masks] if isinstance(masks, str | Path) else list(masks)
    return write_submission(output, joined((None, path) for path in listed), threshold=threshold)


def joined(named: Iterable[tuple[str | None, str | Path]]) -> dict[str, Mask]:
    """Masks by their ``Id`` from paths, each with the name it was given, or None.

    Raises
    ------
    InputError
        When two masks have the same ``Id``.
    """
    found: dict[str, Mask] = {}
    for given, path in named:
        for name, mask in [(given, path)] if given is not None else _masks_in(path):
            if name in found:
                raise InputError(
                    f"{path}: another mask is called {name}, {found[name]}.",
                    hint="Name them: --id NAME=MASK.",
                )
            found[name] = mask
    return found


def _masks_in(path: str | Path) -> list[tuple[str, Mask]]:
    """What a path holds: the lines of a csv, the pictures of a folder that predict wrote, else one mask."""
    place = Path(path)
    if place.suffix.lower() == ".csv":
        return [(line.name, line) for line in lines_of(place)]
    pictures = pictures_in(place)
    return [(picture.stem, picture) for picture in pictures] or [(stem_of(path), path)]
