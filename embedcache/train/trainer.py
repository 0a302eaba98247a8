"""Turns a store and labels into a trained decoder: the whole of stage two, in one call."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from embedcache.errors import ConfigError, Interrupted
from embedcache.files import exclusive_lock, remove_litter
from embedcache.peak import peak_memory
from embedcache.progress import Progress, Silent
from embedcache.sam.decoder import Decoder
from embedcache.train.device import automatic_batch_size, training_device
from embedcache.train.feed import Feed
from embedcache.train.loop import METRIC, Course, TensorBoardCurves, enough, run_loop, validate
from embedcache.train.metrics import Figures
from embedcache.train.options import DEFAULT_STEPS, TrainOptions
from embedcache.train.overlay import save_overlay
from embedcache.train.record import check_resumable, describe, save_checkpoint, summarise
from embedcache.train.run import Json, Run, keep_rows_until, new_folder, read_json, wanted_folder, write_json
from embedcache.train.setup import Setup, StoreLike, prepare, starting_decoder
from embedcache.train.state import Standing, load_state
from embedcache.train.steps import Stepper
from embedcache.train.validation import fixed_subset

LOCK = ".lock"
"""File of a run folder that its trainer holds, so that two trainings never mix in one folder."""

VALIDATED_TILES = {"cpu": 64, "cuda": 512}
"""At most this many held-out tiles are measured during training; ``evaluate`` measures all."""


def train(
    store: StoreLike | Sequence[StoreLike],
    labels: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Run:
    """Train SAM's prompt encoder and mask decoder from stored embeddings.

    Neither the encoder nor the volume is opened: a store and labels are all that is needed.

    Parameters
    ----------
    store : EmbeddingStore or path, or a list of them
        Of one embedding space.
    labels : path, or a list of them
        One for each store; see :func:`embedcache.train.labels.open_labels`.
    out : path, optional
        The run's folder; default ``runs/STORE-LABELS`` in the current folder.
    progress : Progress, optional
        Default: silent.
    **options
        See :class:`embedcache.train.options.TrainOptions`.

    Returns
    -------
    Run
        Its folder, with ``checkpoint``, ``best`` and ``outcome()``.

    Raises
    ------
    LabelError, ConfigError, WeightsError
        Before anything is written.
    MissingTilesError
        When tiles that the labels touch are not encoded.
    MismatchError
        When stores or ``init`` are of several embedding spaces, or a resumed run began otherwise.
    Interrupted
        On Ctrl-C; ``resume=True`` goes on from the last validation.
    """
    known = {field.name for field in fields(TrainOptions)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"train has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    if isinstance(options.get("supervision"), list):
        options["supervision"] = tuple(options["supervision"])
    chosen = TrainOptions(**options)
    teller = progress if progress is not None else Silent()
    device = training_device(chosen.device)
    if out is not None:
        wanted_folder(out, resume=chosen.resume)  # refused here, before labels are read for it
    setup = prepare(store, labels, chosen, teller)
    decoder = starting_decoder(setup, chosen)
    folder = new_folder(out, setup.stores[0].path, Path(setup.labels[0].source), resume=chosen.resume)
    try:
        with exclusive_lock(folder / LOCK, guarded=folder):
            wanted_folder(folder, resume=chosen.resume)  # again: another training may have come first
            remove_litter(folder, deep=False)  # of a training that was killed
            return _train(setup, chosen, decoder, folder, device, teller)
    except (KeyboardInterrupt, Interrupted) as error:
        number = error.exit_code - 128 if isinstance(error, Interrupted) else 2
        raise Interrupted(
            f"Training was interrupted; {folder} keeps everything up to its last validation.",
            signal_number=number,
            hint=f"Go on with the same command and --resume --out {folder}",
        ) from error


def _train(
    setup: Setup,
    options: TrainOptions,
    decoder: Decoder,
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> Run:
    tiles = sum(len(part.numbers) for part in setup.train)
    queries = options.max_objects if setup.objects != "whole" else 1
    batch_size = options.batch_size or automatic_batch_size(device, tiles, queries)
    config = describe(setup, options, batch_size)
    if (folder / "config.json").exists():
        batch_size = check_resumable(folder, config, setup.split.to_dict(), options.batch_size)
    elif options.resume:
        progress.say(f"{folder} holds no run to go on with: it begins.")
    decoder = decoder.to(device)
    with Feed(setup.train, batch_size, options.seed) as feed:
        steps = options.steps or DEFAULT_STEPS
        if options.epochs is not None:
            steps = math.ceil(options.epochs * feed.epoch_length / batch_size)
        stepper = Stepper(
            decoder,
            options,
            setup.prompts,
            total_steps=steps,
            images_per_call=1 if device.type == "cpu" else batch_size,
            mixes_free=bool(setup.interactive),
        )
        course = _course(setup, options, folder, steps, device)
        curves = TensorBoardCurves(folder) if options.logger == "tensorboard" else None
        with curves if curves is not None else nullcontext():
            standing, baseline = _begin(setup, course, stepper, config, device, progress)
            first = standing.step
            if (folder / "summary.json").is_file() and (first >= steps or enough(course, standing)):
                progress.say(f"{folder} is finished; nothing is left to do.")
                return Run(folder)
            started = time.perf_counter()
            standing = run_loop(
                course,
                stepper,
                feed,
                standing,
                save=partial(save_checkpoint, setup, folder),
                curves=curves,
                progress=progress,
            )
            spent = time.perf_counter() - started
    run = Run(folder)
    facts = {
        "steps": standing.step,
        "epochs": standing.step * batch_size / feed.epoch_length,
        "seconds": standing.seconds,
        "samples_per_second": (standing.step - first) * batch_size / max(spent, 1e-9),
        "data_wait_fraction": min(1.0, feed.waited / max(spent, 1e-9)),
        "peak_memory_bytes": peak_memory(device),
    }
    write_json(folder / "summary.json", summarise(setup, course, run, standing, baseline, facts))
    return run


def _begin(
    setup: Setup, course: Course, stepper: Stepper, config: Json, device: torch.device, progress: Progress
) -> tuple[Standing, Figures]:
    """Start a run, or put back where one stood; also the untrained decoder's figures on the same tiles."""
    folder = course.folder
    state = folder / "resume.safetensors"
    if state.is_file() and (folder / "baseline.json").is_file():
        standing = load_state(state, stepper.decoder, stepper.optimizer)
        keep_rows_until(folder / "metrics.jsonl", standing.step)
        progress.say(f"{folder}: going on from step {standing.step}.")
        return standing, Figures(**read_json(folder / "baseline.json"))
    keep_rows_until(folder / "metrics.jsonl", -1)
    write_json(folder / "config.json", config)
    write_json(folder / "split.json", setup.split.to_dict())
    _draw_alignment(setup, folder)
    progress.say(f"{folder / 'overlay.png'} shows the labels over an embedding.")
    untrained = setup.stores[0].decoder().to(device)
    baseline = validate(course, untrained, device, 0, None)
    write_json(folder / "baseline.json", baseline.to_dict())
    progress.say(f"untrained decoder: {METRIC} {baseline.dice:.3f} ({course.val_source} prompts).")
    return Standing(), baseline


def _course(setup: Setup, options: TrainOptions, folder: Path, steps: int, device: torch.device) -> Course:
    limit = VALIDATED_TILES[device.type]
    return Course(
        folder=folder,
        steps=steps,
        validate_every=min(steps, options.validate_every or max(20, steps // 20)),
        patience=options.patience,
        val=fixed_subset(setup.val, limit),
        interactive=fixed_subset(setup.interactive, limit),
        val_source=setup.val_source,
    )


def _draw_alignment(setup: Setup, folder: Path) -> None:
    """The overlay of the training tile with the most positives."""
    dataset = setup.train[0].dataset
    counts = dataset.labels.positive(dataset.store, setup.train[0].numbers)
    number = setup.train[0].numbers[int(counts.argmax())]
    tile = dataset.store.tile(number)
    save_overlay(folder / "overlay.png", dataset.store[number], dataset.labels.crop(tile), tile)
