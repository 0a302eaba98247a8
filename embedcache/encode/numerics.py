"""Turns wishes, and what a store says that it was made under, into the numerics and the encoder of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from embedcache.encode.options import EncodeOptions
from embedcache.encode.out_of_memory import why
from embedcache.encode.prepare import EncodeJob
from embedcache.errors import EmbedcacheError
from embedcache.sam.encoder import Encoder, is_out_of_memory
from embedcache.sam.self_test import self_test
from embedcache.sam.tuning import Tuning, tune

Say = Callable[[str], None]

SAFEST = {"attention": "stock", "compiled": False}
"""What an encoder goes back to that does not give what segment-anything gives."""

_passed: set[tuple[str, str, str]] = set()
"""Encoders that passed the self-test in this process: digest of the weights, precision, numerics."""


def choose_numerics(
    job: EncodeJob, recorded: Mapping[str, Any] | None, tiles_to_do: int, say: Say
) -> dict[str, Any]:
    """The numerics under which a run encodes: those of its store, or for a new one what is fastest here.

    Parameters
    ----------
    job : EncodeJob
        With the wishes.
    recorded : dict or None
        The store's; None when it has none yet. ``--allow-numerics`` passes them over.
    tiles_to_do : int
        Compiling and long searches pay for many only.
    say : callable
        Told what was decided.
    """
    options = job.options
    if recorded is not None and not options.allow_numerics:
        _say_what_is_passed_over(options, recorded, say)
        if options.threads is not None and job.device.type == "cpu":
            torch.set_num_threads(
                options.threads
            )  # where they change bits, the encoder sets the recorded ones
        return dict(recorded)
    wishes = Tuning(
        attention=options.attention,
        compile=options.compile,
        batch=options.batch_size,
        threads=options.threads,
    )
    return tune(
        job.weights,
        device=job.device,
        precision=job.precision,
        tiles_to_do=tiles_to_do,
        wishes=wishes,
        say=say,
    )


def _say_what_is_passed_over(options: EncodeOptions, recorded: Mapping[str, Any], say: Say) -> None:
    """Wishes that the store's numerics overrule are not passed over in silence."""
    wished = {
        "attention": None if options.attention == "auto" else options.attention,
        "compiled": None if options.compile == "auto" else options.compile == "on",
        "batch": options.batch_size,
        "threads": options.threads if recorded.get("threads") else None,
    }
    for name, wish in wished.items():
        if wish is not None and wish != recorded.get(name):
            say(
                f"The store was begun with {name} {recorded.get(name)}, which holds; {wish} has no effect. "
                "--allow-numerics takes it, where other last bits do not matter."
            )


def build_encoder(job: EncodeJob, numerics: Mapping[str, Any] | None, say: Say) -> Encoder:
    """The job's encoder under given numerics."""
    return Encoder(job.weights, device=job.device, precision=job.precision, numerics=numerics, say=say)


def proven(
    encoder: Encoder, job: EncodeJob, build: Callable[[Mapping[str, Any]], Encoder], say: Say
) -> Encoder:
    """The encoder, once it has been compared with segment-anything's own code; else that code's way.

    Raises
    ------
    EmbedcacheError
        When even that does not give what it should.
    """
    if _passes(encoder, job, say):
        return encoder
    say(
        "The fast encoder gives other embeddings than segment-anything on this machine; "
        "segment-anything's own way is taken instead, which is much slower. Please report this."
    )
    encoder = build({**SAFEST, "batch": encoder.batch})
    if _passes(encoder, job, say):
        return encoder
    raise EmbedcacheError(
        "The encoder does not give segment-anything's embeddings on this machine, not even in its own way.",
        hint="Try --precision fp32 or --device cpu; torch or the device computes wrongly here.",
    )


def _passes(encoder: Encoder, job: EncodeJob, say: Say) -> bool:
    key = job.weights.encoder_digest, encoder.precision, repr(sorted(encoder.numerics.items()))
    if key in _passed:
        return True
    try:
        passed = self_test(encoder, job.weights, say).passed
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        say(f"No self-test: segment-anything's own code does not fit into {encoder.device} ({why(error)}).")
        return True
    if passed:
        _passed.add(key)
    return passed
