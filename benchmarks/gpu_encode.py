"""The figures of a GPU, as one command: the encoder beside others' and the whole `encode`, for each model.

    python benchmarks/gpu_encode.py --out figures.json            # vit_b, vit_l and vit_h; about 15 minutes
    python benchmarks/gpu_encode.py --models vit_tiny --tiles 8 --rounds 1 --device cpu        # tries itself

First the whole of ``encode``: a zarr volume of noise in chunks of 128³ to a committed float16 store; images per
second without start-up, and the share of that time for which the encoder waited for input. Then ``bench encode``:
stock, transformers and segment-anything-fast where they are installed, ours compiled and not, in turns, on one
batch. Results are written after each step, so that what was measured is not lost. Ends with a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from commands import figures

from embedcache.bench.ceiling import write_noise
from embedcache.bench.encoders import bench_encoders
from embedcache.errors import EmbedcacheError
from embedcache.progress import Terminal

MODELS = ("vit_b", "vit_l", "vit_h")
PEERS = ("hf_bf16", "fast_bf16")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--tiles", type=int, default=4096, help="of the whole encode; 6 MiB of disk each")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each encoder")
    parser.add_argument("--batch-size", type=int, help="of the encoders' bench; default: 8 on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--compile", default="auto", choices=("auto", "on", "off"), help="of the whole encode"
    )
    parser.add_argument(
        "--only", action="append", default=[], help="variants of the encoders' bench; default: all"
    )
    parser.add_argument("--folder", help="where volume and stores lie; default: that of temporary files")
    parser.add_argument("--out", type=Path, default=Path("gpu_encode.json"))
    return parser.parse_args()


def encoders(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The encoders in turns; the reason where not one of them runs."""
    try:
        return bench_encoders(
            Terminal(),
            model=model,
            rounds=arguments.rounds,
            device=arguments.device,
            batch_size=arguments.batch_size,
            only=tuple(arguments.only),
        ).to_dict()
    except EmbedcacheError as error:
        return {"not_run": {"all": str(error)}, "seconds": {}}


def whole(model: str, volume: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One encode of the whole volume, by the real command."""
    store = folder / f"{model}.zarr"
    found = figures(
        *("encode", "--volume", volume, "--model", model, "--checkpoint", "random:0", "--store", store),
        *("--device", arguments.device, "--compile", arguments.compile),
    )
    shutil.rmtree(store)
    moving = found["seconds"] - found["seconds_by_stage"]["prepare"]
    return found | {
        "images_per_second": found["tiles_encoded"] / moving,
        "share_waited": found["waits"]["input"] / moving,
    }


def line(model: str, found: dict[str, Any]) -> str:
    seconds = found["encoders"]["seconds"]
    ours = min((value for name, value in seconds.items() if name.startswith("ours")), default=None)
    peer = min((seconds[name] for name in PEERS if name in seconds), default=None)
    bare = "—" if ours is None else f"{1 / ours:.1f}"
    ratio = "not measured" if ours is None or peer is None else f"{peer / ours:.2f}×"
    run = found["encode"]
    return (
        f"| {model} | {bare} | {ratio} | {run['images_per_second']:.1f} | {run['share_waited']:.1%} | "
        f"{run['bottleneck']} |"
    )


def main() -> None:
    arguments = parse()
    report: dict[str, Any] = {"models": {}}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        volume, begin = Path(folder) / "noise.zarr", time.perf_counter()
        chunks = write_noise(volume, arguments.tiles)
        print(
            f"{arguments.tiles} planes in {chunks} chunks in {time.perf_counter() - begin:.0f} s", flush=True
        )
        for model in arguments.models:
            found = {"encode": whole(model, volume, Path(folder), arguments)}
            report["models"][model] = found  # the whole first: it is what counts
            arguments.out.write_text(json.dumps(report, indent=1, default=str))
            found["encoders"] = encoders(model, arguments)
            report["machine"] = found["encoders"].get("machine")
            arguments.out.write_text(json.dumps(report, indent=1, default=str))
            print(
                json.dumps({model: found["encoders"]["seconds"]} | found["encode"], default=str), flush=True
            )
    print(
        "\n| model | encoder alone, images/s | × the faster peer | whole encode, images/s | waited | limit |"
    )
    print("|---|---|---|---|---|---|")
    for model, found in report["models"].items():
        print(line(model, found))
    print(f"\n{report['machine']}")


if __name__ == "__main__":
    main()
