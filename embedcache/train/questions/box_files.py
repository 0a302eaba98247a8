"""Turns a file of boxes that a person or a program drew, CSV or COCO JSON, into checked boxes; pure parsing.

CSV has a header. One column says which plane a box lies on, ``image`` (a file's name) or ``plane`` (a number
from 0), and four say where: ``x0,y0,x1,y1``, ``xmin,ymin,xmax,ymax`` or ``x,y,width,height``; ``label`` may be
there, and further columns are left alone. COCO JSON has ``images[].file_name`` and ``annotations[].bbox`` (x, y,
width, height); segmentations in it are not read. All are pixels, x to the right and y down; x0 and x1 are edges,
so a box of one pixel has x1 = x0 + 1.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedcache.errors import LabelError
from embedcache.train.questions.user_box import UserBox

__all__ = ["MOST_BOXES", "MOST_BYTES", "UserBox", "read_boxes"]

MOST_BYTES = 64 * 2**20
MOST_BOXES = 1_000_000

_IMAGE, _PLANE = ("image", "file_name", "filename", "file"), ("plane", "z")
_LABEL = ("label", "class", "category", "name")
_CORNERS = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"))
_SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"))

_HEADER = (
    "image (or plane), x0, y0, x1, y1 and perhaps label; or xmin, ymin, xmax, ymax; or x, y, width, height"
)


def read_boxes(path: str | Path) -> tuple[UserBox, ...]:
    """Read all boxes of a file, ``.csv`` or COCO ``.json``.

    Raises
    ------
    LabelError
        When it cannot be read, is neither, holds no box, or one of them is none; the place is named.
    """
    path = Path(path)
    text = _text_of(path)
    ending = path.suffix.lower()
    if ending not in (".csv", ".json"):
        raise LabelError(
            f"{path}: boxes are read from .csv and COCO .json; this is {ending or 'without an ending'}.",
            hint=f"A CSV needs the columns {_HEADER}.",
        )
    found: list[UserBox] = []
    for box in _of_csv(text, path) if ending == ".csv" else _of_coco(text, path):
        if len(found) == MOST_BOXES:
            raise LabelError(f"{path} holds more than {MOST_BOXES:,} boxes, the most that is read.")
        found.append(box)
    if not found:
        raise LabelError(
            f"{path} holds no box.", hint="Without boxes, train and predict with --prompts none."
        )
    return tuple(found)


def _text_of(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise LabelError(f"{path} has {size:,} bytes; a file of boxes has at most {MOST_BYTES:,}.")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LabelError(f"The boxes {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path} is no text in UTF-8 (byte {error.start}).") from error


def _of_csv(text: str, path: Path) -> Iterator[UserBox]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        columns = _Columns.of(header, path)
        for row in rows:
            if any(cell.strip() for cell in row):
                line = f"line {rows.line_num}"
                where = f"{path}, {line}"
                if len(row) != len(header):
                    raise LabelError(f"{where} has {len(row)} cells; the header has {len(header)}.")
                yield replace(columns.box([cell.strip() for cell in row], where), where=line)
    except csv.Error as error:
        raise LabelError(f"{path}, line {rows.line_num} is no CSV: {error}.") from error


@dataclass(frozen=True)
class _Columns:
    """Where in a row what stands; ``sides``: the last two numbers are width and height."""

    places: tuple[int, int, int, int]
    names: tuple[str, ...]
    sides: bool
    image: int | None
    plane: int | None
    label: int | None

    @classmethod
    def of(cls, header: Sequence[str], path: Path) -> _Columns:
        twice = sorted({name for name in header if name and header.count(name) > 1})
        if twice:
            raise LabelError(f"{path} has the column {twice[0]} twice.")
        image, plane = _first(header, _IMAGE), _first(header, _PLANE)
        if image is not None and plane is not None:
            raise LabelError(f"{path} has both a column image and a column plane; one of them says where.")
        for names, sides in [*((names, False) for names in _CORNERS), *((names, True) for names in _SIDES)]:
            if set(names) <= set(header):
                a, b, c, d = (header.index(name) for name in names)
                return cls((a, b, c, d), names, sides, image, plane, _first(header, _LABEL))
        shown = ", ".join(header[:12]) or "nothing"
        raise LabelError(f"{path} has the columns {shown}.", hint=f"Boxes need {_HEADER}, in a first line.")

    def box(self, row: Sequence[str], where: str) -> UserBox:
        numbers = [
            _number(row[place], name, where) for place, name in zip(self.places, self.names, strict=True)
        ]
        image = None if self.image is None else row[self.image]
        if image == "":
            raise LabelError(f"{where}: the image has no name.")
        plane = None if self.plane is None else _whole(row[self.plane], where)
        label = "" if self.label is None else row[self.label]
        return _checked(image, plane, numbers, self.sides, label, where)


def _first(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _number(value: object, name: str, where: str) -> float:
    """A finite number out of a cell, or out of JSON."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise LabelError(f"{where}: {name} is {str(value)[:40]!r}; a number of pixels is expected.")
    return number


def _whole(cell: str, where: str) -> int:
    if not cell.isascii() or not cell.isdigit() or len(cell) > 12:
        raise LabelError(f"{where}: plane is {cell[:40]!r}; a number from 0 is expected.")
    return int(cell)


def _checked(
    image: str | None, plane: int | None, numbers: Sequence[float], sides: bool, label: str, where: str
) -> UserBox:
    x0, y0, x1, y1 = numbers
    if sides:
        x1, y1 = x0 + x1, y0 + y1
    if not (x0 < x1 and y0 < y1):
        raise LabelError(
            f"{where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) holds nothing.",
            hint="Edges have x0 < x1 and y0 < y1; sides stand in columns x, y, width, height.",
        )
    return UserBox(image, plane, x0, y0, x1, y1, label)


def _of_coco(text: str, path: Path) -> Iterator[UserBox]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{path} is no JSON: {error}.") from error
    images, annotations = (_listed(content, name, path) for name in ("images", "annotations"))
    names = {}
    for number, image in enumerate(images):
        where = f"{path}, images[{number}]"
        key = _key(_field(image, "id", where), where)
        if key in names:
            raise LabelError(f"{where}: the id {key} is that of another image too.")
        name = _field(image, "file_name", where)
        if not isinstance(name, str) or not name:
            raise LabelError(f"{where}: file_name is no name.")
        names[key] = name
    kinds = _categories(content)
    for number, annotation in enumerate(annotations):
        where = f"{path}, annotations[{number}]"
        key = _key(_field(annotation, "image_id", where), where)
        if key not in names:
            raise LabelError(f"{where}: there is no image of the id {key}.")
        bbox = _field(annotation, "bbox", where)
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise LabelError(f"{where}: bbox is {str(bbox)[:40]}; x, y, width and height are expected.")
        numbers = [_number(v, f"bbox[{place}]", where) for place, v in enumerate(bbox)]
        kind = annotation.get("category_id")
        label = kinds.get(kind, "") if isinstance(kind, int | str) else ""
        box = _checked(names[key], None, numbers, True, label, where)
        yield replace(box, where=f"annotations[{number}]")


def _listed(content: Any, name: str, path: Path) -> list[Any]:
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise LabelError(
            f"{path} is no COCO JSON: it has no list {name!r}.",
            hint="Expected is an object with images (id, file_name) and annotations (image_id, bbox).",
        )
    return found


def _field(entry: Any, name: str, where: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise LabelError(f"{where} has no {name}.")
    return entry[name]


def _key(value: Any, where: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise LabelError(f"{where}: an id is a whole number or a word; found {str(value)[:40]}.")
    return value


def _categories(content: dict[str, Any]) -> dict[int | str, str]:
    """Names of the categories that have one; they are only shown, so that odd ones are left alone."""
    listed = content.get("categories")
    return {
        kind["id"]: str(kind["name"])
        for kind in (listed if isinstance(listed, list) else [])
        if isinstance(kind, dict) and isinstance(kind.get("id"), int | str) and "name" in kind
    }
