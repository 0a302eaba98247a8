"""Turns one variant into seconds, error and peak memory: what runs in the process of its own that each gets.

``python -m embedcache.bench.process SETTINGS`` builds the variant, encodes once, and answers on its standard
output, one JSON object a line: first that it is ready (or why it is not), then the seconds of each turn that a
line on its standard input asks for, and at the end of the input its peak memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from embedcache.bench.variants import REFERENCE, Built, build, chosen
from embedcache.geometry import IMAGE_SIZE
from embedcache.peak import forget_peak, peak_memory
from embedcache.sam.weights import resolve_weights

TURN_SECONDS = 0.5
"""A turn repeats calls for at least as long, so that short ones are measured well."""


@dataclass(frozen=True)
class Settings:
    """What one process is to measure; given to it as JSON.

    Parameters
    ----------
    variant, model, checkpoint, device : str
        Which encoder, of which weights, where.
    batch : int
        Images in one call.
    threads : int or None
        CPU threads; None: as many as torch takes.
    reference : str
        File of the reference's embeddings, ``.npy``: the reference writes it, the others compare with it.
    profile : str or None
        Where a trace of one call is written.
    """

    variant: str
    model: str
    checkpoint: str
    device: str
    batch: int
    threads: int | None
    reference: str
    profile: str | None = None

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(asdict(self))


def images(batch: int) -> Tensor:
    """The images that every variant encodes: (batch, 3, 1024, 1024) float32, smooth and noisy, as normalised."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, 3, 32, 32, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    return smooth + 0.3 * torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


def main() -> None:
    """Measure one variant as the settings on the command line say."""
    settings = Settings(**json.loads(sys.argv[1]))
    answers = own_output()
    device = torch.device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    begin = time.perf_counter()
    try:
        built = _build(settings, device)
        inputs = images(settings.batch).to(device)
        at_start = peak_memory(device)
        forget_peak(device)
        embeddings = built.run(inputs).float().cpu()
    except Exception as error:  # of other people's libraries and compilers: whatever it is, the others go on
        text = str(error).strip() or type(error).__name__
        return tell(answers, not_run=text.splitlines()[0][:300])
    started = time.perf_counter() - begin
    tell(
        answers,
        start_seconds=started,
        start_memory_bytes=at_start,
        error=_compare(embeddings, settings),
        numerics=built.numerics,
        threads=torch.get_num_threads(),
    )
    for _line in sys.stdin:
        wall, cpu = _turn(built, inputs, device)
        tell(answers, seconds=wall / settings.batch, cpu_seconds=cpu / settings.batch)
    if settings.profile is not None:
        _trace(built, inputs, device, settings.profile)
    tell(answers, peak_memory_bytes=peak_memory(device))


def own_output() -> TextIO:
    """The process's standard output for the answers alone; what libraries print there goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def tell(answers: TextIO, **figures: Any) -> None:
    """One answer, as a line of JSON."""
    print(json.dumps(figures), file=answers, flush=True)


def _build(settings: Settings, device: torch.device) -> Built:
    (variant,) = chosen((settings.variant,))
    weights = resolve_weights(settings.model, settings.checkpoint)
    return build(variant, weights, device=device, batch=settings.batch)


def _turn(built: Built, inputs: Tensor, device: torch.device) -> tuple[float, float]:
    """Seconds of one call, on the clock and of the processor: the mean over as many as make a turn."""
    begin, worked, calls = time.perf_counter(), time.process_time(), 0
    while not calls or time.perf_counter() - begin < TURN_SECONDS:
        built.run(inputs)
        wait(device)
        calls += 1
    return (time.perf_counter() - begin) / calls, (time.process_time() - worked) / calls


def wait(device: torch.device) -> None:
    """Until the device has done all it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _compare(embeddings: Tensor, settings: Settings) -> dict[str, float] | None:
    """How far the embeddings lie from the reference's; None where there is no reference."""
    path = Path(settings.reference)
    if settings.variant == REFERENCE:
        np.save(path, embeddings.numpy())
    if not path.is_file():
        return None
    reference = torch.from_numpy(np.load(path))
    difference = (embeddings - reference).double()
    return {
        "relative_l2": float(difference.norm() / reference.double().norm()),
        "largest": float(difference.abs().max()),
    }


def _trace(built: Built, inputs: Tensor, device: torch.device, path: str) -> None:
    with torch.profiler.profile() as profile:
        built.run(inputs)
        wait(device)
    profile.export_chrome_trace(path)


if __name__ == "__main__":
    main()
