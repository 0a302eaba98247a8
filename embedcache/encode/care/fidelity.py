"""Turns a few tiles, encoded again, into a store's fidelity certificate: how far what is stored is from float32.

The tiles are drawn with a seed from the committed ones, their pixels must be the recorded ones. Each is encoded in
float32; the difference is measured in the space of embeddings and in masks that the store's own decoder gives
for a fixed grid of single points. Under the store's own numerics they are encoded as well, to see whether they
come out bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedcache.encode.care.against import pixels_again
from embedcache.encode.care.origin import AGAINST, encoder_of, source_of, weights_of
from embedcache.errors import InputError, MismatchError, command
from embedcache.geometry import Tile
from embedcache.progress import Progress
from embedcache.sam.decoder import Decoder, Prompts
from embedcache.sam.encoder import Encoder, resolve_device
from embedcache.store import EmbeddingStore
from embedcache.store.certificate import Certificate
from embedcache.store.shards.quantise import quantise

GRID = 4
"""Points per side of the grid of prompts."""

PROMPTS = f"{GRID * GRID} single points, a {GRID} by {GRID} grid over the tile"

MEANINGFUL = (0.001, 0.999)
"""Share of a mask's pixels that must lie inside for its cut at logit 0 to count: all or none says nothing."""


@dataclass
class Measured:
    """What has been measured so far."""

    largest: float = 0.0
    squares: float = 0.0
    values: int = 0
    relative: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    median_ious: list[float] = field(default_factory=list)
    zero_ious: list[float] = field(default_factory=list)

    def add(self, stored: Tensor, reference: Tensor) -> None:
        """Take in one embedding, (256, 64, 64) float32 each."""
        exact, error = reference.double(), stored.double() - reference.double()
        self.largest = max(self.largest, float(error.abs().max()))
        self.squares += float(error.square().sum())
        self.values += error.numel()
        length = float(exact.norm())
        self.relative.append(float(error.norm()) / length if length else float(error.norm()))
        cosine = torch.nn.functional.cosine_similarity(
            stored.double().flatten(), exact.flatten(), dim=0, eps=1e-30
        )
        # two embeddings of nothing but zeros are the same one
        self.cosines.append(min(float(cosine), 1.0) if length or float(stored.norm()) else 1.0)

    def add_masks(self, stored: Tensor, reference: Tensor) -> None:
        """Take in the masks of one tile, logits (Q, H, W) each, of the tile's own part of the frame."""
        medians = reference.flatten(1).median(dim=1).values[:, None, None]
        self.median_ious += _ious(stored > medians, reference > medians)
        inside = (reference > 0).flatten(1).float().mean(dim=1)
        useful = (inside >= MEANINGFUL[0]) & (inside <= MEANINGFUL[1])
        self.zero_ious += _ious(stored[useful] > 0, reference[useful] > 0)


def certify(
    store: EmbeddingStore,
    count: int,
    *,
    volume: str | None,
    checkpoint: str | None,
    device: str,
    seed: int,
    progress: Progress,
) -> Certificate:
    """Encode a few committed tiles again and measure how far the stored embeddings are from float32.

    Parameters
    ----------
    store : EmbeddingStore
        Read only; keeping the certificate is the caller's.
    count : int
        Tiles, drawn from the committed ones; all of them when there are fewer.
    volume, checkpoint : str, optional
        By default those that the store was made from.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    seed : int
        Of the draw.
    progress : Progress
        Where to report to.

    Raises
    ------
    InputError
        When there is no committed tile, or volume or weights cannot be found.
    MismatchError
        When pixels or weights are not the ones that the store was made with.
    """
    numbers = drawn(store, count, seed)
    weights = weights_of(store, checkpoint, progress)
    place = resolve_device(device)
    own = encoder_of(store, weights, place, None)
    exact = own if own.precision == "fp32" else Encoder(weights, device=place, precision="fp32")
    decoder = store.decoder().eval().requires_grad_(False).to(place)
    measured, reproduced = Measured(), 0
    progress.start("encoding again in float32", len(numbers))
    with source_of(store, volume, AGAINST) as opened, torch.inference_mode():
        for number, inputs in _inputs(store, opened.source, pixels_again(store, opened, numbers)):
            reference = exact(inputs)[0]
            again = reference if own is exact else own(inputs)[0]
            stored = store[number]
            reproduced += int(_same_bits(store, number, again))
            measured.add(stored, reference)
            measured.add_masks(*_masks(decoder, store.tile(number), torch.stack([stored, reference])))
            progress.advance()
    progress.finish()
    return _certificate(store, numbers, seed, own, measured, reproduced)


def drawn(store: EmbeddingStore, count: int, seed: int) -> npt.NDArray[np.int64]:
    """The committed tiles that are encoded again, ascending; all of them when there are fewer than ``count``.

    Raises
    ------
    InputError
        When there is none, or none is asked for.
    """
    if count < 1:
        raise InputError(f"{count} tiles cannot be encoded again; expected at least 1.")
    committed = np.flatnonzero(store.committed & store.base)  # masks are compared where they lie
    if not len(committed):
        raise InputError(f"{store.path} holds no embedding that could be encoded again.")
    return np.sort(np.random.default_rng(seed).permutation(committed)[:count])


def _inputs(store: EmbeddingStore, source: str, tiles: object) -> Iterator[tuple[int, Tensor]]:
    for tile in tiles:  # type: ignore[attr-defined]
        if tile.input is None:
            raise MismatchError(
                f"{source}: the pixels of {store.describe(tile.number)} are not the ones that were encoded.",
                hint=f"See which tiles changed: {command('verify', store.path, AGAINST, source)}",
            )
        yield tile.number, torch.from_numpy(tile.input)[None]


def _same_bits(store: EmbeddingStore, number: int, again: Tensor) -> bool:
    values, scales = store.reader().read_stored([number])
    if scales is None:
        return torch.equal(values[0].view(torch.int16), again.to(torch.float16).view(torch.int16))
    new_values, new_scales = quantise(again[None])
    return torch.equal(values, new_values) and torch.equal(scales, new_scales)


def _masks(decoder: Decoder, tile: Tile, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of all prompts for the stored and for the float32 embedding, cut to the tile's part of the frame."""
    height, width = tile.input_size
    rows_there, columns_there = tile.low_res_size
    steps = (torch.arange(GRID, dtype=torch.float32) + 0.5) / GRID
    rows, columns = torch.meshgrid(steps * height, steps * width, indexing="ij")
    points = torch.stack([columns, rows], dim=-1).reshape(-1, 1, 2)
    count = len(points)
    prompts = Prompts(
        (count, count),
        point_coords=points.repeat(2, 1, 1),
        point_labels=torch.ones(2 * count, 1, dtype=torch.int32),
    )
    device = decoder.mask_decoder.iou_token.weight.device
    logits = decoder(embeddings.to(device), prompts.to(device)).low_res_logits[
        :, 0, :rows_there, :columns_there
    ]
    return logits[:count], logits[count:]


def _ious(stored: Tensor, reference: Tensor) -> list[float]:
    both = (stored & reference).flatten(1).sum(dim=1)
    either = (stored | reference).flatten(1).sum(dim=1)
    # two empty masks agree
    return [float(b) / float(e) if e else 1.0 for b, e in zip(both, either, strict=True)]


def _certificate(
    store: EmbeddingStore,
    numbers: npt.NDArray[np.int64],
    seed: int,
    own: Encoder,
    measured: Measured,
    reproduced: int,
) -> Certificate:
    zero = measured.zero_ious
    return Certificate(
        tiles=len(numbers),
        seed=seed,
        store_dtype=store.spec.store_dtype,
        model_type=store.spec.model_type,
        precision=store.spec.precision,
        untrained=bool(store.provenance.get("untrained")),
        device=torch.cuda.get_device_name(own.device) if own.device.type == "cuda" else own.device.type,
        torch=torch.__version__,
        max_abs_error=measured.largest,
        rms_error=(measured.squares / measured.values) ** 0.5,
        relative_l2=max(measured.relative),
        cosine=min(measured.cosines),
        prompts=PROMPTS,
        iou_mean=float(np.mean(measured.median_ious)),
        iou_min=min(measured.median_ious),
        zero_masks=len(zero),
        zero_iou_mean=float(np.mean(zero)) if zero else None,
        zero_iou_min=min(zero) if zero else None,
        reproduced=reproduced,
        same_numerics=own.numerics == store.numerics,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
