"""Turns the path of a volume into the labels and masks that lie beside it under the names people give them.

Names end in ``.zarr``, ``.tif``, ``.tiff`` or ``.png``, or are folders of images; ``_v2`` marks a version, the
highest of which is taken. What is found is never taken without a word: whoever asks prints it. Where two files are
equally good nobody chooses for the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import ConfigError
from embedcache.remote import is_remote, without_password

LABEL_NAMES = ("inklabels", "labels", "label", "ink_masks", "masks", "mitochondria")
ENDINGS = (".zarr", ".tif", ".tiff", ".png")
SUPERVISION, VALIDATION = "supervision_mask", "validation_mask"

_LAYERS = ("surface_volume", "layers")
_SURFACES = ("surface-volumes", "surface_volumes")
_NO_TARGET = ("mask", SUPERVISION, VALIDATION)
_VOLUME_ENDINGS = re.compile(
    r"(\.ome)?\.(zarr|tiff?|png|jpe?g|npy|h5|hdf5?|nii(\.gz)?|nrrd|nhdr|tifs)$", re.I
)


@dataclass(frozen=True)
class FoundLabels:
    """Labels beside a volume.

    Parameters
    ----------
    labels : Path
    supervision, validation : Path or None
        Masks of the same volume.
    how : str
        How the labels were found, for the user.
    """

    labels: Path
    supervision: Path | None
    validation: Path | None
    how: str


@dataclass(frozen=True)
class _Place:
    """Where names are looked for: a folder, what the volume is called there, and whether it is of layers."""

    folder: Path
    names: tuple[str, ...]
    layered: bool = False


@dataclass(frozen=True)
class _Hit:
    path: Path
    version: int
    versions: tuple[int, ...]

    @property
    def how(self) -> str:
        """In words."""
        if len(self.versions) == 1:
            return "found beside the volume"
        others = ", ".join(str(version) for version in self.versions if version != self.version)
        return f"found beside the volume; version {self.version} before {others}"


def find_labels(source: str) -> FoundLabels:
    """The labels of a volume, and the masks of what counts in them.

    Parameters
    ----------
    source : str
        Path of the volume, as it was encoded: a file, a Zarr group or a level of it, a fragment's folder,
        surface volume or ``ir.png``, a segment's ``layers`` or ``surface-volumes/X.zarr``.

    Raises
    ------
    ConfigError
        When nothing is there, with every name that was looked for; when two are equally good; for an address,
        where nothing can be looked for.
    """
    if is_remote(source):
        raise ConfigError(
            f"Labels are not looked for beside an address: {without_password(source)}.",
            hint="Name them with --labels FILE.",
        )
    place = _place_of(source)
    own = Path(_plain(source)).expanduser().resolve()
    names = tuple(_label_names(place))
    for folder, name in names:
        hit = _best(folder, name, but=own)
        if hit is not None:
            supervision, validation = _masks(place, hit.version)
            return FoundLabels(hit.path, supervision, validation, hit.how)
    listed = ", ".join(dict.fromkeys(name for _, name in names))
    raise ConfigError(
        f"No labels were found beside {source}.",
        hint=f"Looked for in {place.folder}, in this order: {listed}; with _v2 and so on for versions; as "
        f"{', '.join(ENDINGS)} or a folder. Name others with --labels FILE.",
    )


def companions(labels: Path) -> tuple[Path | None, Path | None]:
    """Supervision and validation mask that lie beside a label file under its volume's name; None where none does.

    Raises
    ------
    ConfigError
        When two are equally good.
    """
    path = _group_of(Path(labels).expanduser().absolute())
    base, version = _versioned(_stem(path.name))
    layered = any((path.parent / name).is_dir() for name in _LAYERS)
    for name in LABEL_NAMES:
        if base == name:
            fragment = name == "inklabels"
            return _masks(_Place(path.parent, (path.parent.name,), layered or fragment), version)
        if base.endswith(f"_{name}"):
            return _masks(_Place(path.parent, (base.removesuffix(f"_{name}"),), layered), version)
    return None, None


def _plain(source: str) -> str:
    """The path without ``fragment:`` before it and without a dataset behind it."""
    text = source.removeprefix("fragment:") if not Path(source).exists() else source
    inside = re.fullmatch(r"(.*\.(?:h5|hdf5?)):.+", text, re.IGNORECASE)
    return inside[1] if inside else text


def _place_of(source: str) -> _Place:
    path = _group_of(Path(_plain(source)).expanduser().absolute())
    folder = path.parent
    if path.name in _LAYERS:
        return _Place(folder, (folder.name,), layered=True)
    if (path / "surface_volume").is_dir():
        return _Place(path, (path.name,), layered=True)
    if folder.name in _SURFACES:
        return _Place(folder.parent, (folder.parent.name, *_names(path.name)))
    if (folder / "surface_volume").is_dir():  # one of a fragment's images
        return _Place(folder, (folder.name, *_names(path.name)), layered=True)
    return _Place(folder, _names(path.name))


def _group_of(path: Path) -> Path:
    """The pyramid of a level; any other path as it is."""
    while path.name.isdigit() and _is_zarr(path.parent):
        path = path.parent
    return path


def _is_zarr(folder: Path) -> bool:
    return folder.suffix == ".zarr" or any(
        (folder / name).is_file() for name in (".zgroup", ".zattrs", "zarr.json")
    )


def _stem(name: str) -> str:
    """A name without the ending of a volume or of labels: dots within it stay."""
    return _VOLUME_ENDINGS.sub("", name) or name


def _names(name: str) -> tuple[str, ...]:
    """What a volume may be called: its name without the ending, and what stands before the first dot."""
    return tuple(dict.fromkeys([_stem(name), name.split(".")[0] or name]))


def _versioned(stem: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.+)_v(\d{1,9})", stem)
    return (match[1], int(match[2])) if match else (stem, 0)


def _label_names(place: _Place) -> Iterator[tuple[Path, str]]:
    """Folders and names in which labels are looked for, the best first."""
    for target in LABEL_NAMES:
        for name in place.names:
            yield place.folder, f"{name}_{target}"
    if place.folder.name == "images":  # images/V.zarr and labels/V_TARGET.zarr
        beside = place.folder.parent / "labels"
        for name in place.names:
            for target in _targets(beside, name):
                yield beside, f"{name}_{target}"
    for target in LABEL_NAMES:
        yield place.folder, target


def _targets(folder: Path, name: str) -> list[str]:
    """What labels of a volume in a folder of labels are of; more than one is for the user to choose from."""
    found: dict[str, Path] = {}
    for path in _listed(folder):
        base, _ = _versioned(_stem(path.name))
        target = base.removeprefix(f"{name}_")
        if target not in (base, *_NO_TARGET):
            found.setdefault(target, path)
    if len(found) > 1:
        _refuse(list(found.values()), f"{folder} holds labels of {len(found)} kinds for {name}", "--labels")
    return list(found)


def _masks(place: _Place, version: int) -> tuple[Path | None, Path | None]:
    """Supervision and validation mask; a fragment's ``mask.png`` says where there is anything at all."""
    supervision = [f"{name}_{SUPERVISION}" for name in place.names]
    if place.layered:
        supervision += [*(f"{name}_mask" for name in place.names), "mask"]
    validation = [f"{name}_{VALIDATION}" for name in place.names]
    return (
        _first(place.folder, supervision, version, "--supervision"),
        _first(place.folder, validation, version, "--validation"),
    )


def _first(folder: Path, names: Sequence[str], version: int, option: str) -> Path | None:
    hits = (_best(folder, name, like=version, option=option) for name in names)
    return next((hit.path for hit in hits if hit is not None), None)


def _best(
    folder: Path, name: str, *, but: Path | None = None, like: int | None = None, option: str = "--labels"
) -> _Hit | None:
    """What is called so, in version ``like`` where there is one, else in the highest."""
    found: dict[int, list[Path]] = {}
    pattern = re.compile(rf"{re.escape(name)}(?:_v(\d{{1,9}}))?({'|'.join(map(re.escape, ENDINGS))}|)")
    for path in _listed(folder):
        match = pattern.fullmatch(path.name)
        if match and (match[2] or path.is_dir()) and path.resolve() != but:
            found.setdefault(int(match[1] or 0), []).append(path)
    if not found:
        return None
    version = like if like in found else max(found)
    if len(found[version]) > 1:
        _refuse(found[version], f"{folder} holds {len(found[version])} files called {name}", option)
    return _Hit(found[version][0], version, tuple(sorted(found)))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not there, not a folder, or not to be read: then nothing is found in it
        return []


def _refuse(paths: Sequence[Path], wrong: str, option: str) -> None:
    listing = "\n".join(f"  {number}. {path}" for number, path in enumerate(paths, 1))
    raise ConfigError(f"{wrong}:\n{listing}", hint=f"Name one with {option}.")
