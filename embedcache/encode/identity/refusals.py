"""Turns the differences between a store and what is asked for into a refusal that shows every way out."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

from embedcache.encode.options import REENCODE, EncodeOptions
from embedcache.encode.recipe import RECIPE_FIELDS
from embedcache.errors import MismatchError
from embedcache.remote import is_remote, without_password

Differences = dict[str, tuple[object, object]]

ONLY_DEFAULTS = EncodeOptions(volume="", cache_dir="")


def only_the_volume(differences: Differences) -> bool:
    """Whether nothing but the volume differs, so that its changed tiles can be encoded anew in place."""
    return all(name.startswith("volume.") for name in differences)


def other_identity(
    store: Path, differences: Differences, options: EncodeOptions, *, looked_up: bool, compared: str = ""
) -> MismatchError:
    """The refusal of a store that is not what the command would make now.

    Parameters
    ----------
    store : Path
        The store.
    differences : dict
        Field to (recorded, now).
    options : EncodeOptions
        What was asked for.
    looked_up : bool
        Whether the store was found by its source and words, rather than named.
    compared : str
        What a look at recorded tiles found, as a sentence.
    """
    what = (
        "the volume is not what it was when it was encoded"
        if only_the_volume(differences)
        else ("it holds embeddings made in another way than this command would make them")
    )
    found = " was made from the same source by the same options, but " if looked_up else ": "
    message = f"{store}{found}{what}. {compared}Nothing was written."
    return MismatchError(message, differences=differences, hint=ways_out(store, differences, options))


def ways_out(store: Path, differences: Differences, options: EncodeOptions) -> str:
    """Both commands to copy: go on in the store where that is possible, or begin another one."""
    if only_the_volume(differences):
        go_on = "To encode exactly the tiles whose pixels changed anew, in this store:"
        command = command_line(
            replace(options, num_parts=None, part_id=None), store=str(store), changed=REENCODE
        )
    else:
        go_on = "To go on in this store, use the volume, weights and options that it was made with:"
        command = command_line(options, like=str(store), store=str(store))
    other = new_store(store)
    return (
        f"{go_on}\n  {command}\n"
        f"To keep it and make another one beside it:\n  {command_line(options, store=str(other))}"
    )


def new_store(store: Path) -> Path:
    """A path beside a store that is free."""
    stem = store.name.removesuffix(".zarr")
    for number in range(2, 10_000):
        path = store.with_name(f"{stem}-{number}.zarr")
        if not path.exists():
            return path
    return store.with_name(f"{stem}-new.zarr")


def command_line(options: EncodeOptions, *, like: str | None = None, **changes: object) -> str:
    """The ``encode`` command of some options, without defaults and passwords, ready to be copied."""
    volume = without_password(options.volume) if is_remote(options.volume) else options.volume
    words = ["embedcache", "encode", "--volume", volume]
    if like is not None:
        words += ["--like", like]
    for option in fields(EncodeOptions):
        name = option.name
        value = changes.get(name, getattr(options, name))
        given = name in changes or value != getattr(ONLY_DEFAULTS, name)
        skipped = name in ("volume", "cache_dir", "recipe_from") or (
            like is not None and name in RECIPE_FIELDS
        )
        if given and not skipped:
            words += _option(name, value)
    return shlex.join(words)


def _option(name: str, value: object) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if name == "skip_empty":
        return [flag if value else "--no-skip-empty"]
    if isinstance(value, bool):
        return [flag] if value else []
    if value is None:  # of a tile the whole plane, of a number of tiles all of them
        return [flag, "full" if name == "tile" else "all"]
    return [flag, str(value)]
