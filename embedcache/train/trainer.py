"""Turns a store and labels into a trained decoder: the whole of stage two, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from embedcache.errors import ConfigError, EmbedcacheError, Interrupted, StorageError
from embedcache.files import exclusive_lock, remove_litter, remove_tree
from embedcache.progress import Progress, Silent
from embedcache.train.options import TrainOptions
from embedcache.train.overfit import for_overfitting
from embedcache.train.pairs import LabelsLike, StoreLike
from embedcache.train.record import views_said
from embedcache.train.run import Run, new_folder, wanted_folder
from embedcache.train.setup import Setup, prepare
from embedcache.train.start import starting_model
from embedcache.train.stepping.device import require_amp, tf32
from embedcache.train.stepping.ranks import Ranks, joined
from embedcache.train.stepping.running import run_training

LOCK = ".lock"
"""File of a run folder that its trainer holds, so that two trainings never mix in one folder."""


def train(
    store: StoreLike | Sequence[StoreLike],
    labels: LabelsLike | Sequence[LabelsLike],
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    stop: Callable[[], int | None] | None = None,
    **options: Any,
) -> Run:
    """Train SAM's prompt encoder and mask decoder from stored embeddings.

    Neither the encoder nor the volume is opened: a store and labels are all that is needed. Processes that
    ``torchrun`` started train together, with the same arguments; the first of them writes.

    Parameters
    ----------
    store : EmbeddingStore or path, or a list of them
        Of one embedding space.
    labels : path or Labels, or a list of them
        One for each store; see :func:`embedcache.train.truth.labels.open_labels`.
    out : path, optional
        The run's folder; default ``runs/STORE-LABELS`` in the current folder.
    progress : Progress, optional
        Default: silent.
    stop : callable, optional
        Asked after every step for the number of the signal that wants the training to end, or None.
    **options
        See :class:`embedcache.train.options.TrainOptions`.

    Returns
    -------
    Run
        Its folder, with ``checkpoint``, ``best`` and ``outcome()``.

    Raises
    ------
    LabelError, ConfigError, WeightsError
        Before anything is written; :class:`ConfigError` also when the training diverges.
    MissingTilesError
        When tiles that the labels touch are not encoded.
    CorruptionError
        When the checkpoint to start from, or the state to go on from, is damaged.
    MismatchError
        When stores or ``init`` are of several embedding spaces, or a resumed run began otherwise.
    Interrupted
        When ``stop`` said so, or on Ctrl-C; ``resume=True`` goes on from the last save.
    """
    chosen = _options(options)
    with joined(chosen.device) as ranks, tf32(chosen.amp):
        require_amp(chosen.amp, ranks.device)
        teller = progress if progress is not None and ranks.main else Silent()
        if out is not None and ranks.main:
            wanted_folder(out, resume=chosen.resume)  # refused here, before labels are read for it
        setup = prepare(store, labels, chosen, teller)
        for line in views_said(setup):
            teller.say(line)
        model = starting_model(chosen, setup.stores, teller.say)
        with _folder(out, setup, chosen, ranks) as folder, _told(folder):
            run_training(
                setup, chosen, model, folder, ranks=ranks, progress=teller, stop=stop or (lambda: None)
            )
            return Run(folder)


def _options(options: dict[str, Any]) -> TrainOptions:
    known = {field.name for field in fields(TrainOptions)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"train has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    chosen = TrainOptions(**plain)
    return for_overfitting(chosen) if chosen.overfit else chosen


@contextmanager
def _folder(out: str | Path | None, setup: Setup, options: TrainOptions, ranks: Ranks) -> Iterator[Path]:
    """The run's folder, which the first process holds for all of them."""
    if not ranks.main:
        yield Path(ranks.agree(""))
        return
    labels = Path(setup.labels[0].source)
    folder = new_folder(out, Path(setup.stores[0].address), labels, resume=options.resume)
    there = folder.exists()
    with exclusive_lock(folder / LOCK, guarded=folder):
        wanted_folder(folder, resume=options.resume)  # again: another training may have come first
        remove_litter(folder)  # of a training that was killed, among its pictures too
        try:
            yield Path(ranks.agree(str(folder)))
        except EmbedcacheError:
            if not there and [path.name for path in folder.iterdir()] == [LOCK]:
                remove_tree(folder)  # refused before anything was written: nothing is left behind
            raise


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say of an interruption, or a disk that refused, what it leaves and how to go on."""
    try:
        yield
    except StorageError as error:
        error.hint = f"Once the disk takes it, go on with the same command and --resume --out {folder}"
        raise
    except (KeyboardInterrupt, Interrupted) as error:
        number = error.exit_code - 128 if isinstance(error, Interrupted) else 2
        why = f" ({error.message.rstrip('.')})" if isinstance(error, Interrupted) else ""
        raise Interrupted(
            f"Training was interrupted{why}; {folder} keeps everything up to its last save.",
            signal_number=number,
            hint=f"Go on with the same command and --resume --out {folder}",
        ) from error
