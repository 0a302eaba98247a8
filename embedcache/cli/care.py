"""The commands that take care of stores: verify, repair, gc, diff."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from embedcache.cli.app import app
from embedcache.cli.common import cache_dir_option, json_option
from embedcache.cli.output import print_json, print_pairs, print_table
from embedcache.cli.signals import stop_at_once
from embedcache.encode.plan import readable_bytes
from embedcache.errors import EXIT_DONE, EXIT_MISMATCH, ConfigError, EmbedcacheError, StorageError
from embedcache.progress import Terminal
from embedcache.store import EmbeddingStore
from embedcache.store.diff import diff as compare_stores
from embedcache.store.gc import Garbage, References, find_garbage, references, remove_garbage
from embedcache.store.verify import NAMED_TILES, Scope, Verification
from embedcache.store.verify import verify as verify_store

_SHOWN = 10
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@app.command(
    short_help="Check every stored embedding against its record.",
    epilog="Example: embedcache verify embeddings/scroll1-vit_b-t1024-3fa9c1.zarr --subset 5% --max-duration 10m",
)
@click.argument("store", metavar="S")
@click.option("--subset", metavar="N%", help="Only a random share of the shards, another one each time.")
@click.option("--max-duration", metavar="10m", help="Begin no further shard after 90s, 10m or 2h.")
@click.option("--digests", is_flag=True, help="Compare each file's SHA-256 too; about six times slower.")
@click.option("--against", metavar="V", help="Compare the pixels of this volume with those encoded, too.")
@click.option(
    "--reencode", type=int, metavar="N", help="Encode N random tiles again: the store's fidelity certificate."
)
@click.option("--checkpoint", metavar="FILE", help="For --reencode: the weights, where they have moved.")
@click.option(
    "--device", default="auto", show_default=True, help="For --reencode: auto, cpu, cuda or cuda:N."
)
@click.option("--seed", type=int, help="Of every random choice.  [default: another one each time]")
@json_option
def verify(
    store: str,
    subset: str | None,
    max_duration: str | None,
    digests: bool,
    against: str | None,
    reencode: int | None,
    checkpoint: str | None,
    device: str,
    seed: int | None,
    as_json: bool,
) -> None:
    """Check every stored embedding, and everything else in a store, against what was recorded of it.

    Nothing is written but the certificate of --reencode, so a store in use or a read-only one is checked as well.
    """
    scope = Scope(_share(subset), _seconds(max_duration), seed, digests)
    with stop_at_once():
        found = verify_store(store, scope, Terminal())
        figures = found.to_dict() | {"changed": None, "certificate": None}
        code = found.exit_code
        if against is not None and found.opened is not None:
            figures["changed"] = _against(found.opened, found, against)
            code = code or (EXIT_MISMATCH if figures["changed"]["tiles_changed"] else EXIT_DONE)
        if reencode is not None and found.opened is not None:
            figures["certificate"] = _certify(found, reencode, against, checkpoint, device)
        elif found.opened is not None:
            figures["certificate"] = found.opened.certificate
    if as_json:
        print_json(figures)
    else:
        _print_verify(found, figures)
    click.get_current_context().exit(code)


def _against(store: EmbeddingStore, found: Verification, volume: str) -> dict[str, Any]:
    from embedcache.encode.against import compare_with

    return compare_with(store, volume, found.verified, Terminal()).to_dict(NAMED_TILES)


def _certify(
    found: Verification, count: int, volume: str | None, checkpoint: str | None, device: str
) -> dict[str, Any]:
    from embedcache.encode.fidelity import certify

    assert found.opened is not None
    certificate = certify(
        found.opened,
        count,
        volume=volume,
        checkpoint=checkpoint,
        device=device,
        seed=found.seed,
        progress=Terminal(),
    )
    values = certificate.to_dict()
    try:
        found.opened.add_certificate(values)
    except StorageError as error:
        click.echo(f"The certificate is shown but not kept in the store: {error.message}", err=True)
        return {**values, "kept": False}
    return {**values, "kept": True}


def _print_verify(found: Verification, figures: dict[str, Any]) -> None:
    from embedcache.store.certificate import Certificate

    speed = found.bytes / found.seconds if found.seconds else 0.0
    rows: list[tuple[str, object]] = [
        ("store", found.store),
        ("embeddings checked", found.checked),
        ("right", found.ok),
        ("corrupt", found.corrupt),
        ("missing", found.missing),
        ("shards", f"{found.shards_checked:,} of {found.shards_total:,}"),
        ("read", f"{readable_bytes(found.bytes)} in {found.seconds:.1f} s, {readable_bytes(speed)}/s"),
        ("seed", found.seed),
    ]
    changed, certificate = figures["changed"], figures["certificate"]
    if changed is not None:
        rows.append(("pixels compared", changed["compared"]))
        rows.append(("pixels changed", changed["tiles_changed"]))
    if certificate is not None:
        rows.append(("certificate", Certificate.from_dict(certificate).sentence))
    print_pairs("verify", rows)
    for problem in found.problems[:_SHOWN]:
        tiles = f" (tiles {_numbers(problem.tiles)})" if problem.tiles else ""
        click.echo(f"{problem.what}: {problem.where}{tiles}: {problem.reason}", err=True)
    _say_more(len(found.problems))
    for place in (changed or {}).get("places", [])[:_SHOWN]:
        click.echo(f"changed: {place}", err=True)
    for name, (before, now) in (changed or {}).get("header", {}).items():
        click.echo(f"changed: the volume's {name}: recorded {before!r}, now {now!r}", err=True)
    for line in found.litter[:_SHOWN]:
        click.echo(f"litter: {line}", err=True)
    if found.problems:
        click.echo(f"Mend it: embedcache repair {found.store}", err=True)
    if found.litter:
        click.echo(f"Litter does no harm; `embedcache gc {found.store}` shows it.", err=True)


def _numbers(tiles: tuple[int, ...]) -> str:
    more = f" and {len(tiles) - _SHOWN} more" if len(tiles) > _SHOWN else ""
    return ", ".join(map(str, tiles[:_SHOWN])) + more


def _say_more(count: int) -> None:
    if count > _SHOWN:
        click.echo(f"… and {count - _SHOWN} more; --json names them all.", err=True)


@app.command(
    short_help="Mend a store: re-encode what is broken, nothing else.",
    epilog="Example: embedcache repair embeddings/scroll1-vit_b-t1024-3fa9c1.zarr --volume scroll1.zarr",
)
@click.argument("store", metavar="S")
@click.option("--volume", metavar="V", help="The volume, where it has moved.")
@click.option("--checkpoint", metavar="FILE", help="The weights, where they have moved.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
def repair(store: str, volume: str | None, checkpoint: str | None, device: str, as_json: bool) -> None:
    """Mend a store: verify all of it, rebuild what follows from the rest, and encode again only what is broken.

    What is intact is not touched. It can be stopped at any time and run again.
    """
    from embedcache.encode.repair import repair as repair_store

    with stop_at_once():
        result = repair_store(store, volume=volume, checkpoint=checkpoint, device=device, progress=Terminal())
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
    """Show what killed writers left and nobody needs: partial files, dead locks, shards without a record.

    Only with --delete is it removed, while the whole store is locked. Files that are not embedcache's are never
    touched.
    """
    used = references(Path(runs)) if unused else None
    found: list[tuple[Path, Garbage]] = []
    refused: list[EmbedcacheError] = []
    for root in [Path(name) for name in stores] or _folders(Path(cache_dir)):
        try:
            items = _of_store(root, used, delete)
            found += [(root, item) for item in items]
        except EmbedcacheError as error:
            if stores:
                raise
            refused.append(error)
    total = sum(item.bytes for _, item in found)
    if as_json:
        rows = [
            {"path": str(item.path), "bytes": item.bytes, "what": item.what, "why": item.why}
            for _, item in found
        ]
        print_json(
            {
                "deleted": delete,
                "bytes": total,
                "found": rows,
                "refused": [error.message for error in refused],
            }
        )
    else:
        print_table(
            "removed" if delete else "could be removed",
            ("what", "bytes", "path", "why"),
            [(item.what, readable_bytes(item.bytes), item.path, item.why) for _, item in found],
        )
        click.echo(f"{len(found)} in all, {readable_bytes(total)}.", err=True)
        if found and not delete:
            click.echo("Nothing was removed; --delete removes it.", err=True)
    for left in refused:
        click.echo(f"left alone: {left}", err=True)
    click.get_current_context().exit(refused[0].exit_code if refused else EXIT_DONE)


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
                click.echo(f"{name}: tiles {_numbers(tiles)}", err=True)
    click.get_current_context().exit(found.exit_code)


def _share(text: str | None) -> float:
    if text is None:
        return 1.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    share = float(found[1]) / 100 if found else 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"--subset {text}: expected a share such as 5% (more than 0%, at most 100%).")
    return share


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise ConfigError(f"--max-duration {text}: expected a duration such as 90s, 10m or 2h.")
    return seconds
