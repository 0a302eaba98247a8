"""Turns what a training is going to be given into refusals, before hours of encoding are spent on it."""

from __future__ import annotations

from pathlib import Path

from embedcache.train.questions.box_places import require_boxes_of
from embedcache.train.truth.naming import require_images
from embedcache.volume import Volume, open_volume


def check_names(volume: Volume | str | Path, *, val: str = "auto", boxes: str | Path | None = None) -> None:
    """Refuse names of images, and boxes, that a volume does not have: ``train`` would find them after ``encode``.

    Parameters
    ----------
    volume : Volume or path
        What is going to be encoded, as it lies.
    val : str
        As ``train`` takes it; anything but names of images passes.
    boxes : path, optional
        As ``train`` takes it.

    Raises
    ------
    ConfigError
        When ``val`` names an image that is not there.
    LabelError
        When the boxes cannot be read, or lie on no image.
    VolumeError
        When the volume cannot be opened.
    """
    if not isinstance(volume, Volume):
        with open_volume(volume) as opened:
            check_names(opened, val=val, boxes=boxes)
        return
    require_images(val, map(volume.plane_name, range(volume.n_planes)), f"image of {volume.source}")
    if boxes is not None:
        require_boxes_of(boxes, volume)
