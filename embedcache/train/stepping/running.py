"""Turns a prepared training into a finished run folder: begins or goes on, runs the loop, and sums it up."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from embedcache.peak import peak_memory
from embedcache.progress import Progress
from embedcache.sam.decoder import Decoder
from embedcache.store.reading.checks import Check
from embedcache.store.reading.order import Order
from embedcache.train.asking.validation import fixed_subset
from embedcache.train.feed.feeding import Feed, FeedOptions
from embedcache.train.loggers import open_loggers
from embedcache.train.options import DEFAULT_STEPS, TrainOptions
from embedcache.train.record import drawn_views, save_checkpoint, summarise
from embedcache.train.run import Json, Run, write_json
from embedcache.train.setup import Setup
from embedcache.train.stepping.beginning import Beginning, baseline, begin, decide, is_finished
from embedcache.train.stepping.course import Course
from embedcache.train.stepping.loop import Loop, Stop
from embedcache.train.stepping.ranks import Ranks
from embedcache.train.stepping.rows import Rows
from embedcache.train.stepping.state import Standing
from embedcache.train.stepping.steps import Stepper

VALIDATED_TILES = {"cpu": 64, "cuda": 512}
"""At most this many held-out tiles are measured during training; ``evaluate`` measures all."""


def run_training(
    setup: Setup,
    options: TrainOptions,
    model: Decoder,
    folder: Path,
    *,
    ranks: Ranks,
    progress: Progress,
    stop: Stop,
) -> None:
    """Train in a folder that this training holds, from its beginning or from where it stands."""
    beginning = decide(setup, options, folder, ranks, progress)
    images = beginning.batch_size * options.accumulate
    with _open_feed(setup, options, beginning, ranks, progress.say) as feed:
        beginning = replace(beginning, config=beginning.config | {"order": feed.order.to_dict()})
        steps = options.steps or DEFAULT_STEPS
        if options.epochs is not None:
            steps = math.ceil(options.epochs * feed.epoch_length / images)
        course = _course(setup, options, folder, steps=steps, images=images, device=ranks.device.type)
        stepper = Stepper(model.to(ranks.device), options, total_steps=steps, ranks=ranks)
        standing = begin(beginning, setup, course, stepper, ranks, progress)
        if is_finished(course, standing, ranks):
            progress.say(f"{folder} is finished; nothing is left to do.")
            return
        named = options.logger if ranks.main else "none"
        logger = open_loggers(named, folder, settings=options.to_dict(), step=standing.step, say=progress.say)
        with closing(logger):
            rows = Rows(folder / "metrics.jsonl" if ranks.main else None, logger)
            untrained = baseline(beginning, setup, course, ranks, rows, progress)
            save = partial(save_checkpoint, setup, folder, options)
            loop = Loop(
                course, stepper, feed, standing, rows, save=save, ranks=ranks, progress=progress, stop=stop
            )
            ended = loop.run()
        if ranks.main:
            facts = _facts(loop, ended, steps=ended.step - standing.step, ranks=ranks)
            facts["views"] = sorted({view for found in drawn_views(setup) for view in found["views"]})
            summary = summarise(setup, course, Run(folder), ended, untrained, facts)
            write_json(folder / "summary.json", summary)
        ranks.agree(True)  # the others may read what the first has written


def _open_feed(
    setup: Setup,
    options: TrainOptions,
    beginning: Beginning,
    ranks: Ranks,
    say: Callable[[str], None],
) -> Feed:
    """The feed of this process, in the order that the first one chose."""
    share = math.ceil(beginning.batch_size / ranks.world)
    wanted = FeedOptions(
        batch_size=beginning.batch_size * options.accumulate,
        seed=options.seed,
        # on a CPU one image a call is fastest, as its activations stay in the cache
        images_per_call=1 if ranks.device.type == "cpu" else share,
        threads=options.read_threads,
        check=cast(Check, options.check_reads),
        resident=options.resident,
        order=beginning.order,
        rank=ranks.rank,
        world=ranks.world,
        processes_here=ranks.local_world,
    )
    if ranks.main:
        feed = Feed(setup.train, wanted, ranks.device, say=say)
        ranks.agree(feed.order.to_dict())
        return feed
    order = Order.from_dict(ranks.agree({}))
    return Feed(setup.train, replace(wanted, order=order), ranks.device, say=say)


def _course(
    setup: Setup, options: TrainOptions, folder: Path, *, steps: int, images: int, device: str
) -> Course:
    limit = VALIDATED_TILES[device]
    validate_every = min(steps, options.validate_every or max(20, steps // 20))
    return Course(
        folder=folder,
        steps=steps,
        images=images,
        validate_every=validate_every,
        save_every=options.save_every or validate_every,
        patience=options.patience,
        val=fixed_subset(setup.val, limit),
        interactive=fixed_subset(setup.interactive, limit),
        val_source=setup.val_source,
    )


def _facts(loop: Loop, standing: Standing, *, steps: int, ranks: Ranks) -> Json:
    """Counts and times of what was done now; speeds are of steps alone, without validations and saves."""
    feed, options, images = loop.feed, loop.stepper.options, loop.course.images
    spent = max(loop.step_seconds, 1e-9)
    return {
        "steps": standing.step,
        "epochs": standing.images / feed.epoch_length,
        "seconds": standing.seconds,
        "samples_per_second": steps * images / spent,
        "data_wait_fraction": min(1.0, loop.step_waited / spent),
        "peak_memory_bytes": peak_memory(ranks.device),
        "residence": feed.residence.where,
        "order": feed.order.to_dict(),
        "ranks": ranks.world,
        "ema": options.ema,
        "adapter": options.adapter,
    }
