"""Turns what went wrong into an exception with an exit code: the whole tree, and the codes.

::

    EmbedcacheError                 1   a bug of ours when raised as itself
    ├── InputError                  2   wrong usage or input
    │   ├── VolumeError             2   a volume that cannot be opened, or a selection outside it
    │   ├── LabelError              2   labels that do not fit the volume or hold nothing
    │   ├── WeightsError            2   a checkpoint that is none, or of another model
    │   ├── ConfigError             2   embedcache.toml, or an option's value
    │   └── NoTileError             2   a number that has no tile; an IndexError as well
    ├── MismatchError               3   a store, checkpoint or volume that is not the one it was
    │   └── MissingTilesError       3   a reader asks for embeddings that were never encoded
    ├── CorruptionError             4   stored bytes that are not the bytes recorded
    ├── LockedError                 5   another writer holds the store
    ├── StorageError                6   the disk refused: full, denied, failing
    └── Interrupted            130/143  SIGINT or SIGTERM; what was committed stays

Exit code 7 (finished, with failed tiles, or with failed runs of a sweep) is a result, not an exception: see
``EXIT_SOME_FAILED``.

Every message says what is wrong and where; ``hint`` says what to do about it.
"""

from __future__ import annotations

import shlex

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_MISMATCH = 3
EXIT_CORRUPTION = 4
EXIT_LOCKED = 5
EXIT_STORAGE = 6
EXIT_SOME_FAILED = 7
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


def command(*words: object) -> str:
    """A command of ours as a hint gives it: quoted where that is needed, so that it runs as printed."""
    return shlex.join(["embedcache", *map(str, words)])


def counted(number: int, noun: str) -> str:
    """So many of a thing whose plural ends in s: ``1 tile``, ``2 tiles``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class EmbedcacheError(Exception):
    """Root of all errors this package raises on purpose.

    Parameters
    ----------
    message : str
        What is wrong and where, with the value found and the value expected.
    hint : str, optional
        What to do about it; printed on a line of its own.
    """

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class InputError(EmbedcacheError):
    """Wrong usage or wrong input; nothing was written."""

    exit_code = EXIT_INPUT


class VolumeError(InputError):
    """A volume that cannot be opened or read, or a selection that lies outside it."""


class LabelError(InputError):
    """Labels that cannot be read, do not fit the volume, or hold nothing to learn from."""


class WeightsError(InputError):
    """A checkpoint that is none, is unsafe, is of another model, or cannot be found."""


class ConfigError(InputError):
    """A wrong value in ``embedcache.toml`` or in an option."""


class NoTileError(InputError, IndexError):
    """A tile number beyond the store's, or one of those that have no tile."""


class MismatchError(EmbedcacheError):
    """A store, checkpoint or volume that is not the one that was used before.

    Parameters
    ----------
    message : str
        What was compared.
    differences : dict of str to (object, object), optional
        Field name to (recorded value, value found now); printed field by field.
    hint : str, optional
        What to do about it.
    """

    exit_code = EXIT_MISMATCH

    def __init__(
        self,
        message: str,
        *,
        differences: dict[str, tuple[object, object]] | None = None,
        hint: str | None = None,
    ) -> None:
        self.differences = dict(differences or {})
        lines = [message]
        lines += [f"  {name}: recorded {old!r}, now {new!r}" for name, (old, new) in self.differences.items()]
        super().__init__("\n".join(lines), hint=hint)


class MissingTilesError(MismatchError):
    """Embeddings were asked for that the store does not hold."""


class CorruptionError(EmbedcacheError):
    """Stored bytes differ from the bytes that were recorded; without a ``hint`` it says what always helps."""

    exit_code = EXIT_CORRUPTION

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(
            message, hint=hint or "Restore it from a copy, or encode again into another --store."
        )


class LockedError(EmbedcacheError):
    """Another writer holds the store; nothing was written."""

    exit_code = EXIT_LOCKED


class StorageError(EmbedcacheError):
    """The disk is full, denied or failing, for writing or for reading; what was committed stays."""

    exit_code = EXIT_STORAGE


class Interrupted(EmbedcacheError):  # noqa: N818 - not a fault: the user's own wish
    """SIGINT or SIGTERM arrived; what was committed stays and the same command resumes."""

    exit_code = EXIT_SIGINT

    def __init__(self, message: str, *, signal_number: int = 2, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal_number
