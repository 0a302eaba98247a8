"""The whole path on real electron micrographs: encode, train, evaluate on sections never seen, predict."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

import embedcache as ec

pytestmark = pytest.mark.real


def test_a_decoder_trained_from_the_store_beats_the_untrained_one_on_sections_it_never_saw(
    sections, untrained_at_logit_zero
):
    store = ec.encode(sections / "image", store=sections / "s.zarr", model="vit_tiny", tile=256)
    run = ec.train(
        store,
        sections / "label",
        out=sections / "run",
        val="04,05",
        steps=16,
        batch_size=2,
        lr=1e-3,
        logger="none",
    )
    # the pixels are not needed for training or evaluation
    shutil.move(sections / "image", sections / "away")
    figures = ec.evaluate(store, sections / "label", checkpoint=run.checkpoint).to_dict()
    shutil.move(sections / "away", sections / "image")
    assert figures["prompt_source"] == "free"
    assert figures["tiles"] == 2
    untrained = untrained_at_logit_zero(store.path, sections / "label", run.checkpoint)
    assert figures["dice"] > untrained + 0.05
    assert figures["dice"] > figures["baseline"]["dice"] >= untrained  # at its own best threshold too
    prediction = ec.predict(store, run.checkpoint)
    assert prediction[5].shape == (256, 256)
    truth = np.asarray(Image.open(sections / "label" / "05.png")) > 0
    overlap = 2 * (prediction[5] & truth).sum() / (prediction[5].sum() + truth.sum())
    assert overlap > 0.7
