"""Turns a path into a ``Volume``: what lies there decides which reader it gets; only metadata is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from embedcache.errors import EmbedcacheError, VolumeError, command
from embedcache.remote import is_remote, without_password
from embedcache.volume.cache import CACHE_BYTES
from embedcache.volume.folder import natural_key
from embedcache.volume.formats import known_formats
from embedcache.volume.layouts import Found, image_hint, resolve_layout, strip_scheme
from embedcache.volume.meta import check_whole, read_meta, said_shape, voxel_size_in_name, voxel_size_of
from embedcache.volume.remote_volume import open_remote
from embedcache.volume.volume import IMAGE_SUFFIXES, TIFF_SUFFIXES, Volume, way_out

KNOWN_FORMATS = known_formats()


def open_volume(
    path: str | Path,
    *,
    level: int = 0,
    read_memory: int = CACHE_BYTES,
    image: str | None = None,
    anon: bool | None = None,
    chunk_cache: int | None = None,
) -> Volume:
    """Open a volume lazily; the format follows from what lies at ``path``.

    Parameters
    ----------
    path : str or Path
        What the table of docs/volumes.md lists: Zarr, TIFF, PNG, JPEG, ``.npy``, ``FILE.h5:DATASET``, NIfTI, NRRD,
        the folder of a fragment (also as ``fragment:DIR``), of a volpkg or of a segment.
    level : int
        Pyramid level of an OME-Zarr group; 0 is the finest.
    read_memory : int
        Bytes of decoded pixels that are kept at most.
    image : str, optional
        Which image of a fragment: ``surface``, ``ir``, or the name of a folder or file in it.
    anon : bool, optional
        Whether an address is asked without credentials.
    chunk_cache : int, optional
        Bytes of chunks that are kept on this machine of a volume that is read from an address.

    Returns
    -------
    Volume

    Raises
    ------
    VolumeError
        When nothing is there, the format is unknown, it is damaged or may not be read, the level does not
        exist, or ``image`` or ``anon`` do not apply to what is there.
    """
    # The readers are imported late: whoever opens a PNG need not load zarr, h5py and nibabel.
    named, fragment = strip_scheme(str(path))
    text = _local(named)
    if is_remote(text) and (fragment or image is not None):
        raise VolumeError(
            f"{without_password(text)}: fragments are read from folders of this machine.",
            hint="Copy the fragment, or give the address of its surface volume if that is Zarr.",
        )
    if anon is not None and not is_remote(text):
        raise VolumeError(f"{text} lies on this machine: --anon and --no-anon are for addresses.")
    try:
        if is_remote(text):
            volume: Volume = open_remote(text, level=level, anon=anon, chunk_cache=chunk_cache)
            volume.voxel_size = volume.voxel_size or voxel_size_in_name(volume.source)
        else:
            volume = _open(text, level, _Asked(image, fragment))
        volume.cache.limit_bytes = read_memory
        return volume
    except (EmbedcacheError, ImportError, MemoryError):
        raise
    except Exception as error:  # libraries raise anything at all for damaged files, some errors of their own
        raise VolumeError(
            f"{text} cannot be opened ({type(error).__name__}: {error}).",
            hint=way_out(error, "It is damaged, incomplete or not what its name says: fetch it again."),
        ) from error


@dataclass(frozen=True)
class _Asked:
    """Which image of a fragment is asked for, and whether the path was named as a fragment's."""

    image: str | None = None
    fragment: bool = False


def _open(text: str, level: int, asked: _Asked) -> Volume:
    if not text:
        raise VolumeError("The path of the volume is empty.", hint=f"Formats that open: {KNOWN_FORMATS}.")
    if level < 0:
        raise VolumeError(f"--level {level}: levels count from 0, the finest.")
    hdf5 = _is_hdf5(text)
    if not hdf5 and not Path(text).exists():
        raise VolumeError(f"{text} does not exist.", hint=_nearest(Path(text)))
    if not hdf5 and Path(text).is_dir():
        found = found_in(Path(text).absolute(), asked.image, fragment=asked.fragment)
        if found is None:
            return _measured(_open_folder(Path(text).absolute(), level), text)
        if found.choices:
            raise _several(Path(text).absolute(), found)
        return _open(str(found.path), level, _Asked())
    if asked.image is not None or asked.fragment:
        option = f"--image {asked.image}: " if asked.image is not None else "fragment:"
        what = f"{option}{text} is no fragment folder (it is a file)."
        raise VolumeError(what, hint=image_hint(Path(text).absolute(), asked.image))
    volume = _open_file(text)
    if level:
        volume.close()
        raise VolumeError(f"{text} has no pyramid: only level 0 is there, not level {level}.")
    return _measured(volume, text)


def found_in(folder: Path, image: str | None = None, *, fragment: bool = False) -> Found | None:
    """What a folder is recognised as; None where it is opened as it lies.

    Raises
    ------
    VolumeError
        When it is known and holds no pixels, or not the ``image`` that is asked for.
    """
    from embedcache.volume.zarr_volume import looks_like_zarr

    if image is None and not fragment and looks_like_zarr(folder):
        if (folder / "image_embeddings").is_dir() and (folder / "journal").is_dir():
            raise VolumeError(
                f"{folder} is a store of embeddings, not a volume.",
                hint=f"See `{command('status', folder)}`.",
            )
        return None
    return resolve_layout(folder, image=image, fragment=fragment)


def _measured(volume: Volume, text: str) -> Volume:
    """The volume with the voxel size that its name or its meta.json tells, where its own metadata tell none."""
    if volume.voxel_size is None:
        volume.voxel_size = voxel_size_of(Path(text).absolute())
    return volume


def _several(folder: Path, found: Found) -> VolumeError:
    """A numbered list; none of them is the obvious one."""
    lines = [f"  {number}. {path} ({_in_words(path)})" for number, path in enumerate(found.choices, 1)]
    return VolumeError(
        f"{folder} holds {len(lines)} volumes:\n" + "\n".join(lines), hint="Give the path of one."
    )


def _in_words(path: Path) -> str:
    """Name, shape and voxel size of a volume, as far as they are known; nothing but metadata is read."""
    meta = read_meta(path)
    words = [meta["name"]] if isinstance(meta.get("name"), str) and meta["name"] else []
    shape, size = said_shape(path), voxel_size_of(path)
    if shape is None:  # of a volume of slices meta.json says it: thousands of files need not be looked at
        try:
            with open_volume(path) as volume:
                shape, size = (volume.n_planes, *volume.plane_size(0)), volume.voxel_size
        except VolumeError as error:
            words.append(f"does not open: {error.message}")
    words += [] if shape is None else [" × ".join(f"{length:,}" for length in shape)]
    words += [] if size is None else [f"{size[0]:g} µm"]
    return ", ".join(words)


def _open_folder(folder: Path, level: int) -> Volume:
    from embedcache.volume.folder import files_with
    from embedcache.volume.image_volume import open_image_folder
    from embedcache.volume.tiff_volume import open_tiff_folder
    from embedcache.volume.zarr_volume import looks_like_zarr, open_zarr

    if looks_like_zarr(folder):
        return open_zarr(folder, level=level)
    images = files_with(folder, IMAGE_SUFFIXES)
    tiffs = files_with(folder, TIFF_SUFFIXES)
    if images and tiffs:
        raise VolumeError(
            f"{folder} holds {len(tiffs)} TIFF and {len(images)} PNG or JPEG files: which are the volume?",
            hint="Put one kind into a folder of its own, or give the path of a single file.",
        )
    if not images and not tiffs:
        raise VolumeError(
            f"{folder} is empty."
            if not any(folder.iterdir())
            else f"{folder} holds neither Zarr metadata (.zgroup, .zarray, zarr.json, 0/.zarray) nor image files "
            f"({', '.join(IMAGE_SUFFIXES + TIFF_SUFFIXES)}).",
            hint=_folders_inside(folder) or f"Formats that open: {KNOWN_FORMATS}.",
        )
    if level:
        raise VolumeError(f"{folder} has no pyramid: only level 0 is there, not level {level}.")
    if images:
        return open_image_folder(folder, images)
    volume = open_tiff_folder(folder, tiffs)
    check_whole(folder, tiffs, volume.plane_size(0))
    return volume


def _folders_inside(folder: Path) -> str:
    """Which folders inside might be meant; empty where there are none."""
    names = sorted((entry.name for entry in folder.iterdir() if entry.is_dir()), key=natural_key)
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f"It holds the folders {shown}: give the path of the one with the slices." if names else ""


def _open_file(text: str) -> Volume:
    from embedcache.volume.array_volume import open_hdf5, open_nifti, open_npy
    from embedcache.volume.image_volume import open_image
    from embedcache.volume.nrrd_volume import open_nrrd
    from embedcache.volume.tiff_volume import open_tiff

    name = text.lower()
    if _is_hdf5(text):
        return open_hdf5(text)
    path = Path(text).absolute()
    if name.endswith(IMAGE_SUFFIXES):
        return open_image(path)
    if name.endswith(TIFF_SUFFIXES):
        return open_tiff(path)
    if name.endswith(".npy"):
        return open_npy(path)
    if name.endswith((".nii", ".nii.gz")):
        return open_nifti(path)
    if name.endswith((".nrrd", ".nhdr")):
        return open_nrrd(path)
    raise VolumeError(
        f"{text}: files that end in '{path.suffix or path.name}' are not known as volumes.",
        hint=f"Formats that open: {KNOWN_FORMATS}.",
    )


def _local(text: str) -> str:
    """The path behind ``file://``; other addresses stay as they are."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme is None:
        return str(Path(text).expanduser()) if text else text
    return text[len(scheme[0]) :] if scheme[1].lower() == "file" else text


def _is_hdf5(text: str) -> bool:
    return re.search(r"\.(h5|hdf5|hdf)(:.*)?$", text, re.IGNORECASE) is not None


def _nearest(path: Path) -> str:
    parents = [parent for parent in path.absolute().parents if parent.is_dir()]
    return f"The nearest folder that exists is {parents[0].resolve()}." if parents else "Check the path."
