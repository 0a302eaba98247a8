"""Turns measured differences into a store's fidelity certificate: a plain value, kept in the journal.

It says how far the stored embeddings are from what the encoder gives in float32, in the space of embeddings and in
masks of the store's own decoder, and how many of them this machine makes again bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from embedcache.errors import CorruptionError

_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str | None": (str, type(None)),
}


@dataclass(frozen=True)
class Certificate:
    """How faithful a store is, measured on tiles that were encoded again.

    Parameters
    ----------
    tiles : int
        Tiles that were encoded again in float32.
    seed : int
        Of their choice.
    store_dtype, model_type, precision : str
        What the store holds and how it was made.
    untrained : bool
        Whether the weights are random; the figures then say nothing about trained ones.
    device, torch : str
        Where and with what it was measured.
    max_abs_error, rms_error : float
        Over all values of all those embeddings.
    relative_l2 : float
        Length of the error over the length of the embedding, the largest of any tile.
    cosine : float
        Between stored and float32 embedding, the smallest of any tile.
    prompts : str
        What the masks were asked for with.
    iou_mean, iou_min : float
        IoU of the stored embedding's masks with the float32 one's, each mask cut at the float32 logits' median.
    zero_masks : int
        Masks whose cut at logit 0 leaves some pixels in and some out, so that it means something.
    zero_iou_mean, zero_iou_min : float or None
        IoU of those, cut at logit 0; None where there is none.
    reproduced : int
        Tiles that come out bit for bit as stored, encoded again under the store's own numerics.
    same_numerics : bool
        Whether this machine computes under the store's numerics; if not, fewer reproduce, and that is no fault.
    date : str or None
        When it was measured: UTC, ISO 8601. None in certificates of before it was kept; nothing depends on it.
    """

    tiles: int
    seed: int
    store_dtype: str
    model_type: str
    precision: str
    untrained: bool
    device: str
    torch: str
    max_abs_error: float
    rms_error: float
    relative_l2: float
    cosine: float
    prompts: str
    iou_mean: float
    iou_min: float
    zero_masks: int
    zero_iou_mean: float | None
    zero_iou_min: float | None
    reproduced: int
    same_numerics: bool
    date: str | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """From :meth:`to_dict`'s values; what a newer version says beside them is left out.

        Raises
        ------
        CorruptionError
            When something is missing or of another kind.
        """
        taken: dict[str, Any] = {}
        for known in fields(cls):
            value = values.get(known.name, cls if known.default is MISSING else known.default)
            if not isinstance(value, _KINDS[str(known.type)]) or (type(value) is bool) != (
                known.type == "bool"
            ):
                raise CorruptionError(f"A certificate's {known.name} is not what it should be.")
            taken[known.name] = value
        return cls(**taken)

    @property
    def sentence(self) -> str:
        """One line for people."""
        weights = ", untrained weights" if self.untrained else ""
        when = f", measured {self.date}" if self.date else ""
        return (
            f"{self.store_dtype} against float32 on {self.tiles} tiles{weights}: mask IoU {self.iou_mean:.4f} "
            f"(least {self.iou_min:.4f}), cosine at least {self.cosine:.6f}, "
            f"largest error {self.max_abs_error:.2g}; "
            f"{self.reproduced} of {self.tiles} bit for bit{when}"
        )
