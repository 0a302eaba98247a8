"""What `plan` says beside what `encode` then takes: predicted and real seconds, for several settings.

    python benchmarks/plan_accuracy.py [--rounds 2] [--folder /path/on/the/disk] [--only NAME]

Each setting is planned and then encoded, by the real commands in processes of their own; the seconds are those of
the commands' own reports (start-up of Python not counted). The volume is made-up noise in zarr chunks of 128³.
What is promised is a factor between 0.8 and 1.2.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from commands import figures

from embedcache.bench.ceiling import write_noise

PLANES = 64


@dataclass(frozen=True)
class Setting:
    name: str
    options: tuple[str, ...]


SETTINGS = (
    Setting("vit_tiny bf16, 64 tiles", ("--model", "vit_tiny")),
    Setting("vit_tiny fp32, 24 tiles", ("--model", "vit_tiny", "--precision", "fp32", "--z-range", "0:24")),
    Setting(
        "vit_tiny bf16, 512 px, adjacent, int8, 96 tiles",
        (
            *("--model", "vit_tiny", "--tile", "512", "--channels", "adjacent", "--store-dtype", "int8"),
            *("--z-range", "8:32"),
        ),
    ),
    Setting(
        "vit_tiny bf16, 2 workers, 64 tiles",
        ("--model", "vit_tiny", "--shard-tiles", "8", "--workers", "2", "--threads", "1"),
    ),
    Setting(
        "vit_tiny bf16, a part of 2",
        ("--model", "vit_tiny", "--shard-tiles", "16", "--num-parts", "2", "--part-id", "0"),
    ),
    Setting(
        "vit_b bf16, 24 tiles",
        ("--model", "vit_b", "--checkpoint", "random:0", "--z-range", "0:24", "--compile", "off"),
    ),
    Setting(
        "vit_b bf16 compiled, 48 tiles",
        ("--model", "vit_b", "--checkpoint", "random:0", "--z-range", "0:48", "--compile", "on"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", help="where volume and stores lie; default: that of temporary files")
    parser.add_argument("--only", default="", help="settings whose name holds this")
    arguments = parser.parse_args()
    print(f"{'setting':50} {'planned s':>10} {'real s':>8} {'planned/real':>13}  planned, real limit; load")
    ratios = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        volume = Path(folder) / "noise.zarr"
        write_noise(volume, PLANES)
        for number in range(arguments.rounds):
            for setting in SETTINGS:
                if arguments.only not in setting.name:
                    continue
                cache_dir = str(Path(folder) / f"stores-{number}-{len(ratios)}")
                asked = ("--volume", volume, "--cache-dir", cache_dir, *setting.options)
                planned, real = figures("plan", *asked), figures("encode", *asked)
                ratio = planned["seconds_estimated"] / real["seconds"]
                ratios.append(ratio)
                print(
                    f"{setting.name:50} {planned['seconds_estimated']:10.1f} {real['seconds']:8.1f} {ratio:13.2f}",
                    f" {planned['bottleneck']}, {real.get('bottleneck')}; {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    inside = sum(0.8 <= ratio <= 1.2 for ratio in ratios)
    print(f"{inside} of {len(ratios)} within 20 %; median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
