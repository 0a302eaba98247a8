"""The commands that take care of stores: repair, gc, diff (and verify, in a module of its own)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedcache.cli.app import app
from embedcache.cli.common import cache_dir_option, json_option
from embedcache.cli.output import numbers_in_words, print_json, print_pairs, print_table
from embedcache.cli.signals import stop_at_once
from embedcache.encode.sizes import readable_bytes
from embedcache.errors import EXIT_DONE, ConfigError, EmbedcacheError, StorageError
from embedcache.progress import Terminal
from embedcache.store import EmbeddingStore
from embedcache.store.care.diff import diff as compare_stores
from embedcache.store.care.gc import Garbage, References, find_garbage, references, remove_garbage
from embedcache.store.care.unclaimed import Unclaimed, kept_copies


@app.command(
    short_help="Mend a store: re-encode what is broken, nothing else.",
    epilog="Example: embedcache repair embeddings/scroll1-vit_b-t1024-3fa9c1.zarr --volume scroll1.zarr",
)
@click.argument("store", metavar="S")
@click.option("--volume", metavar="V", help="The volume, where it has moved.")
@click.option("--checkpoint", metavar="FILE", help="The weights, where they have moved.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--digests", is_flag=True, help="Compare each file's SHA-256 too, as `verify --digests` does.")
@click.option(
    "--drop-lines",
    is_flag=True,
    help="Leave out lines of the journal that cannot be mended; what they spoke of is missing then.",
)
@json_option
def repair(
    store: str,
    volume: str | None,
    checkpoint: str | None,
    device: str,
    digests: bool,
    drop_lines: bool,
    as_json: bool,
) -> None:
    """Mend a store: verify all of it, rebuild what follows from the rest, and encode again only what is broken.

    What is intact is not touched. It can be stopped at any time and run again.
    """
    from embedcache.encode.care.repair import repair as repair_store

    with stop_at_once():
        result = repair_store(
            store,
            volume=volume,
            checkpoint=checkpoint,
            device=device,
            digests=digests,
            drop_lines=drop_lines,
            progress=Terminal(),
        )
    if as_json:
        print_json(result.to_dict())
    else:
        print_pairs(
            "repair",
            [
                ("store", result.store),
                ("embeddings checked", result.checked),
                ("broken", result.broken),
                ("repaired", result.repaired),
                ("encoded again", result.encoded),
                ("mended", ", ".join(result.mended) or "nothing else was broken"),
            ],
        )
    for line in result.dropped:
        click.echo(f"dropped: {line}", err=True)
    if result.dropped:
        click.echo(
            "What these lines spoke of is missing now. Run the `embedcache encode` command that made the store "
            "again; it encodes that.",
            err=True,
        )
    for line in result.unmended:
        click.echo(f"not mended: {line}", err=True)
    click.get_current_context().exit(result.exit_code)


@app.command(
    short_help="Show what nobody needs; remove it with --delete.",
    epilog="Example: embedcache gc --cache-dir embeddings --stores --runs runs",
)
@click.argument("stores", nargs=-1, metavar="[S]...")
@cache_dir_option
@click.option(
    "--runs", default="runs", show_default=True, help="Where runs live; they say which stores are used."
)
@click.option("--stores", "unused", is_flag=True, help="Also stores that no run refers to.")
@click.option("--delete", is_flag=True, help="Remove what is shown; otherwise nothing is removed.")
@json_option
def gc(stores: tuple[str, ...], cache_dir: str, runs: str, unused: bool, delete: bool, as_json: bool) -> None:
    """Show what killed writers left and nobody needs: partial files, dead locks, old snapshots.

    Only with --delete is it removed, while the whole store is locked. Files that are not embedcache's are never
    touched.
    """
    used = references(Path(runs)) if unused else None
    found: list[Garbage] = []
    kept: list[Unclaimed] = []
    refused: list[EmbedcacheError] = []
    for root in [Path(name) for name in stores] or _folders(Path(cache_dir)):
        try:
            found += _of_store(root, used, delete)
        except EmbedcacheError as error:
            if stores:
                raise
            refused.append(error)
        kept += kept_copies(root.absolute())
    if as_json:
        print_json(_figures(found, kept, refused, delete))
    else:
        _print_garbage(found, kept, delete)
    for left in refused:
        click.echo(f"left alone: {left}", err=True)
    failed = next((error for error in refused if isinstance(error, StorageError)), None)
    click.get_current_context().exit(EXIT_DONE if failed is None else failed.exit_code)


def _figures(
    found: list[Garbage], kept: list[Unclaimed], refused: list[EmbedcacheError], deleted: bool
) -> dict[str, Any]:
    return {
        "deleted": deleted,
        "bytes": sum(item.bytes for item in found),
        "found": [
            {"path": str(item.path), "bytes": item.bytes, "what": item.what, "why": item.why}
            for item in found
        ],
        "kept": [str(item.path) for item in kept],
        "refused": [error.message for error in refused],
    }


def _print_garbage(found: list[Garbage], kept: list[Unclaimed], deleted: bool) -> None:
    if found:
        print_table(
            "removed" if deleted else "could be removed",
            ("what", "bytes", "path", "why"),
            [(item.what, readable_bytes(item.bytes), item.path, item.why) for item in found],
        )
    click.echo(f"{len(found)} in all, {readable_bytes(sum(item.bytes for item in found))}.", err=True)
    if found and not deleted:
        click.echo("Nothing was removed; --delete removes it.", err=True)
    for item in kept:
        click.echo(f"kept: {item}", err=True)


def _of_store(root: Path, used: References | None, delete: bool) -> list[Garbage]:
    return remove_garbage(root, used) if delete else find_garbage(root, used)


def _folders(cache_dir: Path) -> list[Path]:
    """Folders of the cache that are stores or were begun as one; others are somebody else's."""
    if not cache_dir.is_dir():
        raise ConfigError(
            f"There is no folder {cache_dir.absolute()}.",
            hint="Name it with --cache-dir, or name the stores.",
        )
    return sorted(
        path
        for path in cache_dir.iterdir()
        if not path.is_symlink() and (path / "journal").is_dir() and path.is_dir()
    )


@app.command(
    short_help="What tells two stores apart: fields and tiles.",
    epilog="Example: embedcache diff embeddings/a.zarr embeddings/b.zarr --json",
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@json_option
def diff(a: str, b: str, as_json: bool) -> None:
    """Tell two stores apart: the fields of their recipes that differ, and the tiles, matched by place."""
    found = compare_stores(EmbeddingStore.open(a), EmbeddingStore.open(b))
    figures = found.to_dict()
    if as_json:
        print_json(figures)
    else:
        print_pairs(
            "diff",
            [
                ("same", found.same),
                ("tiles equal", found.equal),
                ("only in A", len(found.only_a)),
                ("only in B", len(found.only_b)),
                ("different", len(found.different)),
            ],
        )
        if found.fields:
            rows = [(name, str(ours), str(theirs)) for name, (ours, theirs) in found.fields.items()]
            print_table("fields", ("field", "A", "B"), rows)
        for name, tiles in (
            ("only in A", found.only_a),
            ("only in B", found.only_b),
            ("different", found.different),
        ):
            if tiles:
                click.echo(f"{name}: tiles {numbers_in_words(tiles)}", err=True)
    click.get_current_context().exit(found.exit_code)
