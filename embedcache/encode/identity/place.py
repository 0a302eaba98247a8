"""Turns options and a request into a place: the store that is there, the path of a new one, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedcache.encode.identity.comparing import comparable, compare, planes_in_words
from embedcache.encode.identity.lookup import Listed, look_up
from embedcache.encode.identity.refusals import Differences, only_the_volume, other_identity, ways_out
from embedcache.encode.identity.words import Request, real_source
from embedcache.encode.options import REENCODE, EncodeOptions
from embedcache.errors import ConfigError, MismatchError, VolumeError
from embedcache.files import digest_json, storage_error
from embedcache.progress import Progress, Silent
from embedcache.store import EmbeddingStore, EncodeSpec
from embedcache.store.layout import GROUP_FILE
from embedcache.store.views import base_rows
from embedcache.volume import ImageRecord, ImageVolume, identity_tiles
from embedcache.volume.layouts import source_stem

FINGERPRINT_LETTERS = 6


@dataclass(frozen=True)
class Place:
    """Where the embeddings go.

    Parameters
    ----------
    path : Path
        Where the store is or will be.
    store : EmbeddingStore or None
        The store, when it exists already.
    spec : EncodeSpec
        The spec to encode under: the store's, or after ``--changed reencode`` what it becomes.
    """

    path: Path
    store: EmbeddingStore | None
    spec: EncodeSpec


def locate(
    options: EncodeOptions, request: Request, table: npt.NDArray[np.int64], progress: Progress
) -> Place:
    """Find the store of a request, or the path for a new one.

    Raises
    ------
    MismatchError
        When a store is there whose identity is another one, field by field and with both ways out.
    """
    looked_up = False
    if options.store is not None:
        path = Path(options.store).absolute()
    else:
        path = default_path(options, request)
        found = look_up(path.parent, request, progress)
        if options.changed == REENCODE and not found.same and len(found.alike) > 1:
            raise _ambiguous(found.alike, request)
        listed = _choose(found.same or found.alike, path, progress)
        if listed is not None:
            looked_up, path = not found.same, listed.path
    store = _store_at(path)
    if store is None:
        return Place(path, None, request.spec)
    expected = request.expected(store.spec, store.provenance)
    differences = store.spec.differences(expected)
    if differences and not (
        options.changed == REENCODE and _can_reencode(request, store, table, differences)
    ):
        compared = _name_planes(request, store, table, differences)
        raise other_identity(path, differences, options, looked_up=looked_up, compared=compared)
    return Place(path, store, expected)


def require_but_for_weights(options: EncodeOptions, request: Request, table: npt.NDArray[np.int64]) -> None:
    """Refuse a store that was named and differs in more than the weights, which may be gigabytes to be downloaded.

    Parameters
    ----------
    options : EncodeOptions
        What was asked for.
    request : Request
        Whose spec does not say yet which weights it means.
    table : (N, 5) int64
        The volume's tiles.

    Raises
    ------
    MismatchError
        As of :func:`locate`.
    """
    store = None if options.store is None else _store_at(Path(options.store).absolute())
    if store is not None:
        spec = replace(request.spec, encoder_digest=store.spec.encoder_digest)
        locate(options, replace(request, spec=spec), table, Silent())


def default_path(options: EncodeOptions, request: Request) -> Path:
    """The path of a store that is not named: a folder of ``cache_dir``, named for what it holds."""
    spec, source = request.spec, request.volume.source
    digest = spec.fingerprint.removeprefix("sha256:")
    if not request.volume.uniform:
        # An image folder's identity is per image, so its path keeps two folders of one name apart; and a window
        # sampled from the images changes with every image added, so its words stand for it.
        words = replace(spec, preprocess=replace(spec.preprocess, window=(0.0, 1.0)), statistics=None)
        digest = digest_json([words.fingerprint, options.window, real_source(source)])
    tile = "full" if options.tile is None else f"t{options.tile}"
    name = f"{source_stem(source)}-{options.model}-{tile}-{digest[:FINGERPRINT_LETTERS]}.zarr"
    return Path(options.cache_dir).absolute() / name


def _choose(stores: tuple[Listed, ...], usual: Path, progress: Progress) -> Listed | None:
    """The one under its usual name, else the first by name; that there are several is said."""
    if not stores:
        return None
    chosen = next((listed for listed in stores if listed.path == usual), stores[0])
    if len(stores) > 1:
        names = ", ".join(listed.path.name for listed in stores)
        progress.say(
            f"{len(stores)} stores of {usual.parent} were made of this volume in this way ({names}); "
            f"{chosen.path.name} is taken. --store names another one."
        )
    return chosen


def _ambiguous(stores: tuple[Listed, ...], request: Request) -> ConfigError:
    names = ", ".join(str(listed.path) for listed in stores)
    return ConfigError(
        f"{len(stores)} stores were made of {request.volume.source} in this way, at different times: {names}.",
        hint="Name the one to bring up to date with --store.",
    )


def _store_at(path: Path) -> EmbeddingStore | None:
    try:
        there = (path / GROUP_FILE).exists()
    except OSError as error:
        raise storage_error(error, path) from error
    # None: EmbeddingStore.create refuses a folder that holds something else
    return EmbeddingStore.open(path) if there else None


def _can_reencode(
    request: Request, store: EmbeddingStore, table: npt.NDArray[np.int64], differences: Differences
) -> bool:
    """Whether changed tiles can be encoded anew in place: the same tiles of the same level."""
    if not only_the_volume(differences) or request.volume.uniform != store.uniform:
        return False
    return not request.volume.uniform or _same_tiles(store, table, differences)


def _same_tiles(store: EmbeddingStore, table: npt.NDArray[np.int64], differences: Differences) -> bool:
    return "volume.level" not in differences and np.array_equal(
        table, base_rows(store.table, store.numbering.segments, uniform=True)
    )


def _name_planes(
    request: Request, store: EmbeddingStore, table: npt.NDArray[np.int64], differences: Differences
) -> str:
    """Which planes changed, as far as the tiles that an identity is taken of tell."""
    volume, spec = request.volume, request.spec
    comparable_now = volume.uniform and store.uniform and only_the_volume(differences)
    if not comparable_now or not _same_tiles(store, table, differences):
        return ""
    looked_at = np.zeros(len(store), dtype=np.bool_)
    looked_at[identity_tiles(table)] = True
    try:
        numbers = comparable(store, volume, looked_at)
        found = compare(store, volume, spec.preprocess, numbers, Silent())
    except VolumeError:
        return ""  # what cannot be read is told by whoever needs it
    if not found.changed:
        return ""
    where = planes_in_words(store, found.changed)
    return f"The pixels of {len(found.changed)} of {found.compared} compared tiles changed ({where}). "


def image_table(
    volume: ImageVolume, store: EmbeddingStore | None, options: EncodeOptions
) -> tuple[ImageRecord, ...]:
    """The image table that a store of a folder has or gets: its images as recorded, as they are now, and new ones.

    Raises
    ------
    MismatchError
        When an image changed, unless changed ones are to be encoded anew; when its size changed, then too.
    """
    recorded = {} if store is None else {record.name: record for record in store.images}
    table: list[ImageRecord] = []
    changed: dict[str, tuple[object, object]] = {}
    resized: dict[str, tuple[object, object]] = {}
    for plane in range(volume.n_planes):
        name = volume.plane_name(plane)
        known = recorded.get(name)
        if known is not None and not volume.has(plane):
            table.append(known)  # recorded once, no longer in the folder: its embeddings stay usable
            continue
        now = volume.image_record(plane)
        if known is not None and known != now:
            changed[name] = (known.to_dict(), now.to_dict())
            if (known.height, known.width) != (now.height, now.width):
                resized[name] = changed[name]
        table.append(now)
    if store is not None and changed and (resized or options.changed != REENCODE):
        raise _changed_images(volume, store, changed, resized, options)
    return tuple(table)


def _changed_images(
    volume: ImageVolume,
    store: EmbeddingStore,
    changed: Differences,
    resized: Differences,
    options: EncodeOptions,
) -> MismatchError:
    count = "1 image" if len(changed) == 1 else f"{len(changed)} images"
    hint = ways_out(store.path, {}, options)
    if resized:
        hint = (
            f"Of another size, so that its tiles are others: {', '.join(sorted(resized))}. Under a new name it is "
            "encoded as a new image."
        )
    return MismatchError(
        f"{volume.source}: {count} changed since being encoded ({', '.join(sorted(changed)[:10])}). "
        "Nothing was written.",
        differences=changed,
        hint=hint,
    )
