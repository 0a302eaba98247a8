"""The command that gives a trained decoder to other programs: export."""

from __future__ import annotations

import click

from embedcache.cli.app import app
from embedcache.cli.common import json_option
from embedcache.cli.output import print_json
from embedcache.cli.signals import stop_at_once
from embedcache.progress import Terminal


@app.command(
    short_help="A trained decoder as a SAM checkpoint for other programs.",
    epilog="Example: embedcache export runs/first --output sam_ink.pth",
)
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.option(
    "--to",
    type=click.Choice(["sam", "hf", "onnx"]),
    default="sam",
    show_default=True,
    help="Whose layout; hf and onnx come later.",
)
@click.option("--output", required=True, metavar="O", help="The file to write, a .pth; it must not exist.")
@click.option(
    "--merge", metavar="BASE", help="Take the image encoder of this SAM checkpoint.  [default: found again]"
)
@click.option("--allow-mismatch", is_flag=True, help="Write although the encoder is not the embeddings' own.")
@json_option
def export(
    checkpoint: str, to: str, output: str, merge: str | None, allow_mismatch: bool, as_json: bool
) -> None:
    """Export a run as a file that stock segment-anything loads: its decoder, beside the encoder it goes with."""
    from embedcache.results.export import export as run_export
    from embedcache.train import Checkpoint

    with stop_at_once():
        trained = Checkpoint.load(checkpoint)
        path = run_export(
            trained, output, to=to, merge=merge, allow_mismatch=allow_mismatch, progress=Terminal()
        )
    facts = {"output": str(path), "to": to, "bytes": path.stat().st_size, "threshold": trained.threshold}
    if as_json:
        print_json(facts)
    else:
        click.echo(str(path))
