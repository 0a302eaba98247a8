"""Files of boxes: every usual form is read, and what is no box is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import LabelError
from embedcache.train.questions import box_files
from embedcache.train.questions.box_files import UserBox, read_boxes

BOX = UserBox("a.png", None, 1.0, 2.5, 11.0, 22.5)


def csv_of(folder: Path, text: str) -> Path:
    path = folder / "boxes.csv"
    path.write_bytes(text.encode())
    return path


def coco_of(folder: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 7, "bbox": [1, 2.5, 10, 20], "category_id": 3}],
        "categories": [{"id": 3, "name": "stamp"}],
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(content | changes))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "image,x0,y0,x1,y1\na.png,1,2.5,11,22.5\n",
        "image,xmin,ymin,xmax,ymax\r\na.png,1,2.5,11,22.5\r\n",
        "image,x,y,width,height\na.png,1,2.5,10,20\n",
        "file_name,x,y,w,h\na.png,1,2.5,10,20",
        "\ufeff Image , X0 , Y0 , X1 , Y1 \n a.png , 1 , 2.5 , 11 , 2.25e1 \n\n",
        'score,y1,x1,y0,x0,image\n0.5,22.5,11,2.5,1,"a.png"\n',
    ],
)
def test_a_csv_is_read_by_its_header(tmp_path: Path, text: str) -> None:
    assert read_boxes(csv_of(tmp_path, text)) == (BOX,)


def test_a_csv_may_number_its_planes_or_say_nothing_of_them(tmp_path: Path) -> None:
    (box,) = read_boxes(csv_of(tmp_path, "plane,x0,y0,x1,y1,label\n12,0,0,1,1,ink\n"))
    assert (box.image, box.plane, box.label) == (None, 12, "ink")
    (box,) = read_boxes(csv_of(tmp_path, "x0,y0,x1,y1\n0,0,1,1\n"))
    assert (box.image, box.plane) == (None, None)


def test_coco_is_read_with_the_names_of_images_and_categories(tmp_path: Path) -> None:
    (box,) = read_boxes(coco_of(tmp_path))
    assert box == UserBox("a.png", None, 1.0, 2.5, 11.0, 22.5, "stamp")
    (box,) = read_boxes(coco_of(tmp_path, categories="none"))
    assert box.label == ""


@given(
    st.lists(st.tuples(*[st.integers(0, 2**40)] * 2, *[st.integers(1, 2**40)] * 2), min_size=1, max_size=5)
)
@settings(max_examples=20, deadline=None)
def test_both_forms_give_the_same_boxes(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[tuple[int, int, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("boxes")
    lines = [f"a.png,{x},{y},{x + w},{y + h}" for x, y, w, h in boxes]
    text = "\n".join(["image,x0,y0,x1,y1", *lines])
    annotations = [{"image_id": 7, "bbox": list(box)} for box in boxes]
    assert read_boxes(csv_of(folder, text)) == read_boxes(coco_of(folder, annotations=annotations))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,x0,y0,x1,y1\n", "holds no box"),
        ("", "has the columns nothing"),
        ("a.png,1,2,3,4\n", "has the columns a.png, 1, 2, 3, 4"),
        ("image,plane,x0,y0,x1,y1\na,0,1,1,2,2\n", "both a column image and a column plane"),
        ("image,x0,x0,y0,x1,y1\n", "column x0 twice"),
        ("image,x0,y0,x1,y1\na,1,1,2\n", "line 2 has 4 cells; the header has 5"),
        ("image,x0,y0,x1,y1\na,1,1,2,2\nb,1,1,nan,2\n", "line 3: x1 is 'nan'"),
        ("image,x0,y0,x1,y1\na,1,1,1e999,2\n", "x1 is '1e999'"),
        ("image,x0,y0,x1,y1\na,1,1,,2\n", "x1 is ''"),
        ("image,x0,y0,x1,y1\na,5,1,2,2\n", r"from \(5, 1\) to \(2, 2\) holds nothing"),
        ("image,x,y,width,height\na,5,1,0,2\n", "holds nothing"),
        ("image,x0,y0,x1,y1\n,1,1,2,2\n", "no name"),
        ("plane,x0,y0,x1,y1\n-1,1,1,2,2\n", "plane is '-1'"),
        ("plane,x0,y0,x1,y1\n1.5,1,1,2,2\n", "plane is '1.5'"),
        ('image,x0,y0,x1,y1\n"a,1,1,2,2\n', "is no CSV"),
        (f"image,x0,y0,x1,y1\n{'a' * 200_000},1,1,2,2\n", "is no CSV"),
    ],
)
def test_what_is_no_box_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(LabelError, match=says):
        read_boxes(csv_of(tmp_path, text))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": None}, "no list 'images'"),
        ({"annotations": {}}, "no list 'annotations'"),
        ({"annotations": []}, "holds no box"),
        ({"images": [{"id": 7, "file_name": "a"}, {"id": 7, "file_name": "b"}]}, "that of another image too"),
        ({"images": [{"id": [1], "file_name": "a"}]}, "an id is a whole number or a word"),
        ({"images": [{"id": 7}]}, r"images\[0\] has no file_name"),
        ({"annotations": [{"image_id": 8, "bbox": [0, 0, 1, 1]}]}, "no image of the id 8"),
        ({"annotations": [{"image_id": 7, "bbox": [0, 0, 1]}]}, "x, y, width and height are expected"),
        ({"annotations": [{"image_id": 7, "bbox": [0, 0, 1, True]}]}, r"bbox\[3\] is 'True'"),
        ({"annotations": [{"image_id": 7, "bbox": [0, 0, 1, float("nan")]}]}, r"bbox\[3\] is 'nan'"),
        ({"annotations": [{"image_id": 7, "bbox": [0, 0, 1, 10**400]}]}, r"bbox\[3\] is"),
        ({"annotations": [{"image_id": 7, "bbox": [0, 0, -1, 1]}]}, "holds nothing"),
        ({"annotations": ["box"]}, r"annotations\[0\] has no image_id"),
    ],
)
def test_coco_that_is_none_is_refused_with_its_place(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(LabelError, match=says):
        read_boxes(coco_of(tmp_path, **changes))


def test_files_that_are_no_boxes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabelError, match="cannot be read: No such file"):
        read_boxes(tmp_path / "none.csv")
    (tmp_path / "boxes.txt").write_text("1 2 3 4")
    with pytest.raises(LabelError, match=r"this is \.txt"):
        read_boxes(tmp_path / "boxes.txt")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(LabelError, match="is no JSON"):
        read_boxes(tmp_path / "deep.json")
    (tmp_path / "latin.csv").write_bytes("image,x0,y0,x1,y1\nä.png,1,1,2,2\n".encode("latin-1"))
    with pytest.raises(LabelError, match="UTF-8"):
        read_boxes(tmp_path / "latin.csv")
    monkeypatch.setattr(box_files, "MOST_BOXES", 2)
    with pytest.raises(LabelError, match="more than 2 boxes"):
        read_boxes(csv_of(tmp_path, "x0,y0,x1,y1\n" + "0,0,1,1\n" * 3))
    monkeypatch.setattr(box_files, "MOST_BYTES", 10)
    with pytest.raises(LabelError, match="at most 10"):
        read_boxes(csv_of(tmp_path, "x0,y0,x1,y1\n0,0,1,1\n"))
