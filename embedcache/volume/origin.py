"""Turns a source into where its data come from: address, licence, citation.

What the user says wins. Else the data of the Vesuvius Challenge are recognised by their address or by the names of
their folders, never by pixels; of all other data the texts that lie beside them are taken. What is stated here of
other people's licences is what was known when this version was made: the data's own page decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from embedcache.remote import is_remote, without_password
from embedcache.volume.layouts import LAYERS, SURFACE, strip_scheme

TEXT_BYTES = 4096
"""So much of a licence text is kept."""

AS_KNOWN = "as known to this version of embedcache; the data's own page decides"

UNKNOWN_LICENCE = "licence of the data: unknown; encode --licence records it"
"""What a new store says when nobody told."""

_LICENCES = ("LICENSE*", "LICENCE*")
_CITATION = "CITATION.cff"


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


@dataclass(frozen=True)
class KnownSource:
    """Data that are recognised by where they lie.

    Parameters
    ----------
    name : str
        What people call them.
    parts : str
        A regular expression for one whole part of the path or address: a folder, a file, a bucket.
    hosts : tuple of str
        Buckets and hosts that are enough by themselves.
    licence, citation, note : str
        As of :class:`Origin`.
    """

    name: str
    parts: str
    hosts: tuple[str, ...]
    licence: str
    citation: str
    note: str

    def matches(self, place: str) -> bool:
        """Whether a path or address is one of these data's."""
        address = urlsplit(place) if is_remote(place) else None
        path = place if address is None else unquote(address.path)
        if address is not None:
            host = (address.hostname or "").lower()
            bucket = (
                path.split("/")[1:2] if re.match(r"s3[.-]", host) else []
            )  # s3.us-east-1.amazonaws.com/BUCKET
            if {re.split(r"\.s3[.-]", host)[0], *bucket} & set(self.hosts):
                return True
        return bool(self.parts) and any(re.fullmatch(self.parts, part) for part in path.split("/"))


_CITATION_SCROLLS = (
    "EduceLab-Scrolls: Parsons et al. 2023, arXiv:2304.02084; Vesuvius Challenge, scrollprize.org "
    f"({AS_KNOWN})"
)

_OF_SCROLL = r"(Scroll[1-4][A-Z]?|PHercParis[34]|PHerc0?332|PHerc1667)"
_OF_FRAGMENT = r"(Frag(ment)?[1-6]|PHercParis[12]Fr\d+|PHerc1667Cr1Fr3|PHerc51Cr4Fr8)"

KNOWN: tuple[KnownSource, ...] = (
    KnownSource(
        "Scrolls 1 to 4 and Fragments 1 to 6 of the Vesuvius Challenge",
        # the folder itself, X.volpkg, or a volume that bears the name: 54keV_7.91um_Scroll1A.zarr
        rf"({_OF_SCROLL}|{_OF_FRAGMENT}|\d+keV_[\d.]+um_{_OF_SCROLL})(\.volpkg|\.zarr)?",
        (),
        "No redistribution without the written approval of the Vesuvius Challenge / EduceLab",
        _CITATION_SCROLLS,
        "An embedding store made from these data inherits the question. Recognised by the names of its folders; "
        f"the licence is stated {AS_KNOWN}.",
    ),
    KnownSource(
        "open data of the Vesuvius Challenge",
        "",
        ("vesuvius-challenge-open-data", "data.aws.ash2txt.org", "dl.ash2txt.org"),
        "CC BY-NC 4.0, as the library vesuvius 0.2.4 states",
        _CITATION_SCROLLS,
        "An embedding store made from these data inherits the question. Recognised by the address; the licence is "
        f"stated {AS_KNOWN}.",
    ),
)
"""The more special first: what is open as a whole has parts that are not."""


def origin_of(
    source: str, *, url: str = "", licence: str = "", citation: str = "", beside: bool = True
) -> Origin:
    """The origin of a source: as it was told, as it is known, or as texts beside it say.

    Parameters
    ----------
    source : str
        Path or address of the volume.
    url, licence, citation : str
        What was given; each wins over what is known.
    beside : bool
        Whether to look for texts in the volume's folder.

    Returns
    -------
    Origin
        Empty where nothing is known; see :data:`UNKNOWN_LICENCE`.
    """
    address = _without_user(url) or (without_password(source).rstrip("/") if is_remote(source) else "")
    known = next((one for one in KNOWN if any(map(one.matches, (source, address)))), None)
    told = Origin(address, licence.strip(), citation.strip())
    if known is not None:
        return replace(
            told,
            licence=told.licence or known.licence,
            citation=told.citation or known.citation,
            note=f"{known.name}. {known.note}",
        )
    if not beside or not source or is_remote(source) or (told.licence and told.citation):
        return told
    return _with_texts(told, _folders_of(source))


def _without_user(url: str) -> str:
    """An address that was told: its query says what was fetched, a user and a password who did."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if is_remote(url) else url


def _folders_of(source: str) -> list[Path]:
    """Where texts about a source may lie: in it, beside it, and beside the fragment whose surface it is."""
    path = Path(strip_scheme(re.sub(r"(\.(?:h5|hdf5|hdf)):.*$", r"\1", source))[0])
    folders = [path, path.parent] if path.is_dir() else [path.parent]
    return [*folders, path.parent.parent] if path.name in (SURFACE, LAYERS) else folders


def _with_texts(told: Origin, folders: list[Path]) -> Origin:
    licence = None if told.licence else _first_text(folders, _LICENCES)
    citation = None if told.citation else _first_text(folders, (_CITATION,))
    found = [path.name for path, _ in filter(None, (licence, citation))]
    return replace(
        told,
        licence=licence[1] if licence else told.licence,
        citation=citation[1] if citation else told.citation,
        note=f"Text of {' and '.join(found)}, which lay beside the volume." if found else "",
    )


def _first_text(folders: list[Path], patterns: tuple[str, ...]) -> tuple[Path, str] | None:
    """The first file of these names that can be read as text, and its beginning."""
    for folder in folders:
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            text = _beginning(path)
            if text:
                return path, text
    return None


def _beginning(path: Path) -> str:
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as stream:
            data = stream.read(TEXT_BYTES + 1)
    except OSError:
        return ""  # what may not be read tells nothing
    text = data[:TEXT_BYTES].decode("utf-8", errors="ignore").replace("\r\n", "\n")
    kept = "".join(sign for sign in text if sign.isprintable() or sign in "\n\t").strip()
    return kept + ("\n…" if len(data) > TEXT_BYTES else "")
