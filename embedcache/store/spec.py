"""Turns what decides an embedding's bytes into two digests: the embedding space and the fingerprint.

``embedding_space`` covers what gives an embedding its meaning (encoder, precision, preprocessing);
``fingerprint`` covers that and which volume was cut how, and how it is stored. A store has one fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from embedcache.errors import InputError, MismatchError
from embedcache.files import canonical_json, digest_json
from embedcache.volume.channels import plane_name
from embedcache.volume.preprocess import Preprocess
from embedcache.volume.tiles import TileGrid

FORMAT = 1
"""Number of the store format that this version writes."""

STORE_DTYPES = ("float16", "int8")
"""Element types that this version stores."""

_FIELDS = (
    "model_type",
    "encoder_digest",
    "precision",
    "preprocess",
    "volume",
    "grid",
    "store_dtype",
    "format",
)

_OPTIONAL = ("statistics",)
"""Absent where they are not set, so that stores without them keep their fingerprints."""


@dataclass(frozen=True)
class EncodeSpec:
    """Everything that decides the bytes of a store's embeddings, and nothing else.

    Parameters
    ----------
    model_type : str
        "vit_b", "vit_l", "vit_h" or "vit_tiny".
    encoder_digest : str
        "sha256:…" over the image encoder's weights.
    precision : str
        "fp32" or "bf16": resolved, never "auto".
    preprocess : Preprocess
        Intensity window, channel recipe, revision.
    volume : dict
        The volume's identity, JSON values only.
    grid : TileGrid
        The rule that cuts the volume into tiles.
    store_dtype : str
        Element type of the stored embeddings.
    format : int
        Number of the store format.
    statistics : dict, optional
        Figures of the volume that the window was found from, JSON values only. Part of the fingerprint, not of
        the embedding space: the window, whose numbers the preprocessing holds, says all that embeddings mean.
    """

    model_type: str
    encoder_digest: str
    precision: str
    preprocess: Preprocess
    volume: dict[str, Any]
    grid: TileGrid
    store_dtype: str = "float16"
    format: int = FORMAT
    statistics: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.store_dtype not in STORE_DTYPES:
            raise InputError(
                f"store dtype {self.store_dtype!r}: this version stores {' and '.join(STORE_DTYPES)}."
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, from which :meth:`from_dict` makes an equal spec; what it gives survives a file."""
        values: dict[str, Any] = {
            "model_type": self.model_type,
            "encoder_digest": self.encoder_digest,
            "precision": self.precision,
            "preprocess": self.preprocess.to_dict(),
            "volume": self.volume,
            "grid": self.grid.rule(),
            "store_dtype": self.store_dtype,
            "format": self.format,
        }
        if self.statistics is not None:
            values["statistics"] = self.statistics
        plain: dict[str, Any] = json.loads(canonical_json(values))  # tuples become lists, as after reading
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncodeSpec:
        """Make a spec from :meth:`to_dict`'s values.

        Raises
        ------
        InputError
            When a field is missing or unknown, or a value is of the wrong kind.
        MismatchError
            When the format is newer than this version knows.
        """
        found = values.get("format")
        if isinstance(found, int) and found > FORMAT:
            raise MismatchError(
                f"The spec has format {found}; this version of embedcache reads formats up to {FORMAT}.",
                hint="Install a newer embedcache: pip install --upgrade embedcache",
            )
        if odd := sorted((set(values) - set(_OPTIONAL)) ^ set(_FIELDS)):
            raise InputError(f"The spec lacks or does not know the fields {', '.join(map(repr, odd))}.")
        for name in ("volume", *(set(values) & set(_OPTIONAL))):
            if not isinstance(values[name], dict):
                raise InputError(f"The spec's field {name!r} is not an object.")
        try:
            return cls(
                model_type=str(values["model_type"]),
                encoder_digest=str(values["encoder_digest"]),
                precision=str(values["precision"]),
                preprocess=Preprocess.from_dict(values["preprocess"]),
                volume=values["volume"],
                grid=TileGrid.from_rule(values["grid"]),
                store_dtype=str(values["store_dtype"]),
                format=int(values["format"]),
                statistics=values.get("statistics"),
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InputError(f"The spec is malformed: {type(error).__name__}: {error}.") from error

    @cached_property
    def embedding_space(self) -> str:
        """Digest of what gives an embedding its meaning, "sha256:<64 hex>"; equal: may be used together."""
        values = self.to_dict()
        names = ("encoder_digest", "model_type", "precision", "preprocess")
        return "sha256:" + digest_json({name: values[name] for name in names})

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the whole spec, "sha256:<64 hex>"; a store never mixes two."""
        return "sha256:" + digest_json(self.to_dict())

    def plane_name(self, plane: int) -> str:
        """What people call a plane of an array: ``"z=12"``, or ``"z=3+17+40"`` of three planes drawn at random."""
        shape = self.volume.get("shape")
        planes = int(shape[0]) if isinstance(shape, list | tuple) and shape else 0
        return plane_name(self.preprocess.channels, planes, plane)

    def differences(self, other: EncodeSpec) -> dict[str, tuple[object, object]]:
        """Fields that differ, as dotted name to (value here, value in ``other``)."""
        found = leaf_differences(self.to_dict(), other.to_dict())
        if any(name.startswith("grid.") for name in found):
            found.pop(
                "volume.pixels", None
            )  # they are sampled at places of the grid: others are no other pixels
        return found


def leaf_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[object, object]]:
    """Compare two JSON objects leaf by leaf; a field that one of them lacks counts as ``None`` there."""
    found: dict[str, tuple[object, object]] = {}
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= leaf_differences(before, after, f"{prefix}{name}.")
        elif before != after or (name in old) != (name in new):
            found[prefix + name] = (before, after)
    return found
