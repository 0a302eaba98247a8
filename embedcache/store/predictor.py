"""Turns a stored embedding and prompts in tile px into masks in tile px, as SAM's own predictor does.

It needs neither the encoder nor the volume: the image was set when the store was encoded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.errors import InputError
from embedcache.geometry import LOW_RES_SIZE, Tile
from embedcache.sam.decoder import Decoder, ImageSide, Prompts, upscale_logits
from embedcache.sam.decoding.shared import stamp_of
from embedcache.volume.preprocess import Preprocess
from embedcache.volume.volume import Volume

MASK_THRESHOLD = 0.0
"""Logit above which a pixel belongs to the mask: SAM's own."""

ROUNDING = 1e-2
"""How far beyond the tile a prompt may lie, in px of the 1024 frame."""


class StorePredictor:
    """SAM's predictor with its image already set to one tile.

    Parameters
    ----------
    decoder : Decoder
        Prompt encoder and mask decoder: the store's own or a trained one.
    embedding : Tensor of float32, shape (256, 64, 64)
        The tile's embedding.
    tile : Tile
        The tile; prompts and masks are in its pixels, of a turned or mirrored one as the encoder saw it.
    volume, preprocess : optional
        Only for :attr:`image`.
    """

    is_image_set = True
    mask_threshold = MASK_THRESHOLD

    def __init__(
        self,
        decoder: Decoder,
        embedding: Tensor,
        tile: Tile,
        *,
        volume: Volume | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        self.decoder = decoder.eval()
        self.tile = tile
        self.features = embedding[None].to(self.device)
        self._prepared: ImageSide | None = None
        self._volume = volume
        self._preprocess = preprocess

    @property
    def device(self) -> torch.device:
        """Where the decoder lives."""
        return next(self.decoder.parameters()).device

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the tile as seen, in volume px."""
        return self.tile.seen.height, self.tile.seen.width

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the tile's content in the 1024 frame."""
        return self.tile.input_size

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """The tile's pixels as a picture, uint8 (h, w, 3).

        Raises
        ------
        InputError
            When the predictor was made without a volume.
        """
        if self._volume is None or self._preprocess is None:
            raise InputError(
                "This predictor has no volume to show pixels of.", hint="Use store.predictor(i, volume)."
            )
        pixels = self._preprocess.read(self._volume, self.tile)
        return np.asarray(self._preprocess.to_image(pixels), dtype=np.uint8)

    def get_image_embedding(self) -> Tensor:
        """The embedding, float32 (1, 256, 64, 64)."""
        return self.features

    def predict(
        self,
        point_coords: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        box: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Predict masks for one prompt.

        Parameters
        ----------
        point_coords : array, shape (N, 2), optional
            (x, y) in tile px.
        point_labels : array, shape (N,), optional
            1 in, 0 out.
        box : array, shape (4,), optional
            xyxy in tile px.
        mask_input : array, shape (1, 256, 256), optional
            Low-resolution logits of an earlier call.
        multimask_output : bool
            Three masks instead of one.
        return_logits : bool
            Logits instead of a bool mask.

        Returns
        -------
        masks : ndarray of bool (or float32), shape (C, height, width)
            In tile px.
        iou_predictions : ndarray of float32, shape (C,)
        low_res_logits : ndarray of float32, shape (C, 256, 256)

        Raises
        ------
        InputError
            When points come without labels, a shape is wrong, or a point or box reaches beyond the tile.
        """
        points = None if point_coords is None else self._points(point_coords)[None]
        labels = None if point_labels is None else _tensor(point_labels, torch.int32, (None,))[None]
        boxes = None if box is None else self._box(box)[None]
        mask = None
        if mask_input is not None:
            mask = _tensor(mask_input, torch.float32, (1, LOW_RES_SIZE, LOW_RES_SIZE))[None]
        masks, iou, low_res = self.predict_torch(points, labels, boxes, mask, multimask_output, return_logits)
        return masks[0].cpu().numpy(), iou[0].cpu().numpy(), low_res[0].cpu().numpy()

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict masks for Q prompts in the 1024 frame; shapes (Q, N, 2), (Q, N), (Q, 4), (Q, 1, 256, 256).

        Returns
        -------
        masks : Tensor of bool (or float32), shape (Q, C, height, width)
            In tile px.
        iou_predictions : Tensor of float32, shape (Q, C)
        low_res_logits : Tensor of float32, shape (Q, C, 256, 256)
        """
        given = [value for value in (point_coords, boxes, mask_input) if value is not None]
        prompts = Prompts((len(given[0]) if given else 1,), point_coords, point_labels, boxes, mask_input)
        output = self.decoder(self._image(), prompts.to(self.device), multimask_output=multimask_output)
        masks = upscale_logits(output.low_res_logits, self.tile)
        if not return_logits:
            masks = masks > self.mask_threshold
        return masks, output.iou_predictions, output.low_res_logits

    def _image(self) -> ImageSide:
        """What all prompts share of the tile, computed with the first and again when weights were changed."""
        if self._prepared is None or self._prepared.stamp != stamp_of(self.decoder):
            self._prepared = self.decoder.precompute(self.features)
        return self._prepared

    def _points(self, xy: npt.ArrayLike) -> Tensor:
        return self._frame(_numbers(xy, "point_coords", (None, 2)), "point_coords")

    def _box(self, box: npt.ArrayLike) -> Tensor:
        return self._frame(_numbers(box, "box", (4,)).reshape(2, 2), "box").reshape(4)

    def _frame(self, xy: npt.NDArray[np.float64], name: str) -> Tensor:
        """Places in tile px as a tensor in the 1024 frame; a rounding error beyond the tile is taken off."""
        frame = self.tile.to_frame(xy)
        inside = np.clip(frame, 0, np.array(self.input_size[::-1], np.float32))
        beyond = ~(np.abs(frame - inside) < ROUNDING).all(axis=-1)
        if beyond.any():
            height, width = self.original_size
            raise InputError(
                f"{name} reaches to {xy[beyond][0].tolist()}, beyond the tile.",
                hint=f"Prompts are (x, y) in tile px, and the tile is {width} × {height} "
                f"(width × height); its corner lies at x {self.tile.x0}, y {self.tile.y0} of its plane.",
            )
        return torch.from_numpy(inside)


def _numbers(values: npt.ArrayLike, name: str, shape: tuple[int | None, ...]) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise InputError(f"{name} has shape {array.shape}; expected {shape} (None: any number).")
    return array


def _tensor(values: npt.ArrayLike, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
    return torch.from_numpy(_numbers(values, "a prompt", shape)).to(dtype)
