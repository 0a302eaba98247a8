"""Turns masks into run lengths, and run lengths into masks, as the ink contests write them.

``start length start length …``: pairs of the runs of foreground, row by row. Starts count from 1: pixel (y, x) of
a plane of width W is number ``y * W + x + 1``, and a run may go on into the next row. An empty mask is empty text.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from embedcache.errors import InputError

Bools = npt.NDArray[np.bool_]
Runs = npt.NDArray[np.int64]

MOST_PIXELS = 1 << 34
"""A larger plane is taken for a mistyped size."""

BLOCK_PIXELS = 1 << 20
"""Pixels whose runs are put into words together."""

_TO_QUOTE = re.compile(r'[,"\r\n]')
_TOO_LONG = re.compile(r"[0-9]{12,}")
_NUMBERS = re.compile(r"[0-9 \t]*")


class RunWriter:
    """Gathers the run lengths of a plane from blocks of its rows, in order; the plane itself is never held."""

    def __init__(self) -> None:
        self._seen = 0
        self._begun: int | None = None  # where the run began that reaches the end of what was seen
        self._pieces: list[str] = []

    @property
    def pixels(self) -> int:
        """Pixels that were added."""
        return self._seen

    def add(self, rows: Bools) -> None:
        """Add the rows that follow, bool (h, W); a run that they continue stays one run."""
        flat = np.ascontiguousarray(rows, dtype=np.bool_).ravel()
        for first in range(0, flat.size, BLOCK_PIXELS):  # numbers as Python's take ten times their text
            self._add(flat[first : first + BLOCK_PIXELS])

    def _add(self, flat: Bools) -> None:
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if bool(flat[0]) != (self._begun is not None):
            changes = np.concatenate(([0], changes))
        edges = (changes + self._seen).tolist()
        if self._begun is not None:
            edges.insert(0, self._begun)
        self._seen += flat.size
        self._begun = edges.pop() if flat[-1] else None
        pairs = zip(edges[::2], edges[1::2], strict=True)
        self._pieces.append(" ".join(f"{start + 1} {end - start}" for start, end in pairs))

    def text(self) -> str:
        """The cell of the table: all runs of what was added."""
        last = [] if self._begun is None else [f"{self._begun + 1} {self._seen - self._begun}"]
        return " ".join(piece for piece in [*self._pieces, *last] if piece)


def encode_runs(mask: Bools) -> str:
    """``start length start length …`` of a mask, bool (H, W): 1-based, row by row."""
    writer = RunWriter()
    writer.add(mask)
    return writer.text()


def decode_runs(cell: str, shape: tuple[int, int], *, where: str = "run lengths") -> Bools:
    """Paint the mask that run lengths describe.

    Parameters
    ----------
    cell : str
        As of :func:`encode_runs`.
    shape : (int, int)
        Height and width of the plane: they do not stand in the cell.
    where : str
        What messages call the cell: ``sub.csv, Id a``.

    Returns
    -------
    ndarray of bool, (H, W)

    Raises
    ------
    InputError
        For words that are no numbers, an odd count of them, and runs that begin before 1, are empty, overlap, are
        out of order, or end beyond the plane.
    """
    height, width = shape
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise InputError(f"{where}: a plane of {height} × {width} pixels cannot be painted.")
    starts, lengths = read_runs(cell, where=where)
    ends = starts + lengths  # one behind the last, both counted from 1
    beyond = np.flatnonzero(ends > height * width + 1)
    if len(beyond):
        raise InputError(
            f"{where}: {_run(int(beyond[0]), starts, lengths)} ends beyond {height} × {width} pixels.",
            hint="Give the size of the plane that the mask was made for, height first.",
        )
    steps = np.zeros(height * width + 1, np.int8)
    steps[starts - 1] += 1  # no start is there twice, and no end: they were checked
    steps[ends - 1] -= 1
    np.cumsum(steps, out=steps)
    return steps[:-1].view(np.bool_).reshape(shape)


def read_runs(cell: str, *, where: str = "run lengths") -> tuple[Runs, Runs]:
    """Starts (from 1) and lengths of the runs of a cell, checked as far as that goes without the plane's size.

    Raises
    ------
    InputError
        As :func:`decode_runs`.
    """
    words = _words(cell, where)
    if len(words) % 2:
        raise InputError(
            f"{where}: {len(words)} numbers, which are no pairs of start and length.",
            hint="The cell was cut, or is of another format.",
        )
    starts, lengths = words[::2], words[1::2]
    too_small = np.flatnonzero((starts < 1) | (lengths < 1))
    if len(too_small):
        raise InputError(
            f"{where}: {_run(int(too_small[0]), starts, lengths)}: starts count from 1, and lengths too."
        )
    late = np.flatnonzero(starts[1:] < starts[:-1] + lengths[:-1]) + 1
    if len(late):
        raise InputError(
            f"{where}: {_run(int(late[0]), starts, lengths)} begins before the run in front of it ends.",
            hint="Runs stand in the order of the pixels, row by row, and share none.",
        )
    return starts, lengths


def _words(cell: str, where: str) -> Runs:
    """The numbers of a cell, at most :data:`MOST_PIXELS` each so that sums of two are exact."""
    if _NUMBERS.fullmatch(cell) is None:
        strange = next((word for word in cell.split() if _NUMBERS.fullmatch(word) is None), cell)
        raise InputError(f"{where}: {strange[:40]!r} is no number that counts pixels.")
    too_long = _TOO_LONG.search(cell)
    if too_long is not None:
        raise InputError(f"{where}: {too_long.group()[:40]} is beyond any plane.")
    return np.fromstring(cell, dtype=np.int64, sep=" ") if cell.strip() else np.zeros(0, np.int64)


def _run(index: int, starts: Runs, lengths: Runs) -> str:
    return f"run {index + 1} (start {starts[index]}, length {lengths[index]})"


def csv_line(*cells: str) -> bytes:
    """A row of a csv, quoted where that is needed; cells of a hundred MB are copied once."""
    quoted = (f'"{cell.replace(chr(34), chr(34) * 2)}"' if _TO_QUOTE.search(cell) else cell for cell in cells)
    return (",".join(quoted) + "\n").encode()
