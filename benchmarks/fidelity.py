"""Turns a volume into the fidelity certificates of its float16 and its int8 store, for one or more models.

Run:  python benchmarks/fidelity.py --volume raw/ --model vit_tiny --model vit_b [--tiles 8] [--precision fp32]

Prints JSON, one certificate for each model and store dtype: the stored embeddings against float32 on the same
tiles, and the IoU of masks that the store's own decoder gives for both. With ``random:SEED`` weights (the default)
the figures say what the format costs on such embeddings, and nothing about trained ones.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import embedcache as ec
from embedcache.encode.care.fidelity import certify


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volume", required=True)
    parser.add_argument("--model", action="append", help="may be repeated; default: vit_tiny")
    parser.add_argument("--checkpoint", default="random:0")
    parser.add_argument("--tile", default="1024")
    parser.add_argument("--z-range", help="to encode only some planes")
    parser.add_argument("--tiles", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    wishes = parser.parse_args()
    found = []
    progress = ec.Terminal()
    with tempfile.TemporaryDirectory() as folder:
        for model in wishes.model or ["vit_tiny"]:
            for dtype in ("float16", "int8"):
                store = ec.encode(
                    wishes.volume,
                    store=Path(folder) / f"{model}-{dtype}.zarr",
                    model=model,
                    checkpoint=wishes.checkpoint,
                    tile=wishes.tile,
                    z_range=wishes.z_range,
                    precision=wishes.precision,
                    device=wishes.device,
                    store_dtype=dtype,
                    progress=progress,
                )
                certificate = certify(
                    store,
                    wishes.tiles,
                    volume=None,
                    checkpoint=None,
                    device=wishes.device,
                    seed=0,
                    progress=progress,
                )
                found.append({**certificate.to_dict(), "bytes": store.status().bytes})
    json.dump(
        {"machine": platform.processor() or platform.machine(), "certificates": found}, sys.stdout, indent=2
    )
    print()


if __name__ == "__main__":
    main()
