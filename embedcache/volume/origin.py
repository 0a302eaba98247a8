"""Turns a source into where its data come from: address, licence, citation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Where data come from; empty where it is not known.

    Parameters
    ----------
    url : str
        Where they were fetched.
    licence, citation : str
        Verbatim.
    note : str
        What else is to be known, such as who says so.
    """

    url: str = ""
    licence: str = ""
    citation: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Origin:
        """From :meth:`to_dict`; what an older version did not record is empty."""
        return cls(*(str(values.get(name) or "") for name in ("url", "licence", "citation", "note")))


def origin_of(source: str, *, url: str = "", licence: str = "", citation: str = "") -> Origin:
    """The origin of a source, as it was told.

    Parameters
    ----------
    source : str
        Path or address of the volume.
    url, licence, citation : str
        What was given; it wins over what is known.
    """
    return Origin(url, licence, citation)
