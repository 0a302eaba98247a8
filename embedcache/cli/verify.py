"""The command that checks a store: verify."""

from __future__ import annotations

import re
from typing import Any

import click

from embedcache.cli.app import app
from embedcache.cli.common import json_option
from embedcache.cli.output import numbers_in_words, print_json, print_pairs
from embedcache.cli.signals import stop_at_once
from embedcache.encode.sizes import readable_bytes
from embedcache.errors import (
    EXIT_DONE,
    EXIT_MISMATCH,
    ConfigError,
    CorruptionError,
    EmbedcacheError,
    InputError,
    StorageError,
    command,
)
from embedcache.progress import Terminal
from embedcache.store import EmbeddingStore, layout
from embedcache.store.care.verification import NAMED_TILES, Scope, Verification
from embedcache.store.care.verify import verify as verify_store
from embedcache.store.certificate import Certificate
from embedcache.store.journal.lines import MAIN

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
    if checkpoint is not None and reencode is None:
        raise ConfigError("--checkpoint names the weights for --reencode N, which was not given.")
    failure: EmbedcacheError | None = None
    with stop_at_once():
        _require_at_hand(store, against, reencode, checkpoint, device)
        found = verify_store(store, scope, Terminal())
        figures = found.to_dict() | {"changed": None, "certificate": None}
        try:
            if found.opened is not None:
                figures |= _beyond(found, found.opened, against, reencode, checkpoint, device)
        except EmbedcacheError as error:  # what was found until then is told first
            failure = error
    if as_json:
        print_json(figures)
    else:
        _print_verify(found, figures)
    if failure is not None and not found.problems:
        raise failure
    if failure is not None:
        click.echo(f"{failure}", err=True)
    click.get_current_context().exit(found.exit_code or _exit_code_of(figures["changed"]))


def _require_at_hand(
    path: str, against: str | None, reencode: int | None, checkpoint: str | None, device: str
) -> None:
    """Refuse a wrong volume, checkpoint or device at once, not after hours of reading."""
    if against is None and reencode is None:
        return
    from embedcache.encode.care.at_hand import require_certifiable, require_volume

    try:
        store = EmbeddingStore.open(path)
    except (CorruptionError, InputError):
        return  # which the account of it tells
    if reencode is None:
        require_volume(store, against)
    else:
        require_certifiable(
            store, reencode, volume=against, checkpoint=checkpoint, device=device, progress=Terminal()
        )


def _beyond(
    found: Verification,
    store: EmbeddingStore,
    against: str | None,
    reencode: int | None,
    checkpoint: str | None,
    device: str,
) -> dict[str, Any]:
    """What was asked for beyond the store's own records: its pixels, its fidelity."""
    from embedcache.encode.care.against import compare_with

    changed = None
    if against is not None:
        changed = compare_with(store, against, found.verified, Terminal()).to_dict(NAMED_TILES)
    if reencode is None:
        return {"changed": changed, "certificate": store.certificate}
    return {"changed": changed, "certificate": _certify(found, reencode, against, checkpoint, device)}


def _exit_code_of(changed: dict[str, Any] | None) -> int:
    """3 where pixels changed; the identity's own sample may find what a subset of tiles does not."""
    differs = changed is not None and (changed["tiles_changed"] or "pixels" in changed["header"])
    return EXIT_MISMATCH if differs else EXIT_DONE


def _certify(
    found: Verification, count: int, volume: str | None, checkpoint: str | None, device: str
) -> dict[str, Any]:
    from embedcache.encode.care.fidelity import certify

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
    speed = found.bytes / found.seconds if found.seconds else 0.0
    rows: list[tuple[str, object]] = [
        ("store", found.store),
        ("embeddings checked", found.checked),
        ("right", found.ok),
        ("corrupt", found.corrupt),
        ("missing", found.missing),
        ("shards", f"{found.shards_checked:,} of {found.shards_total:,}"),
        ("read", f"{readable_bytes(found.bytes)} in {found.seconds:.1f} s, {readable_bytes(speed)}/s"),
        ("tiles wanted", found.wanted),
        ("not encoded yet", found.not_encoded),
        ("seed", str(found.seed)),  # as --seed takes it
    ]
    changed, certificate = figures["changed"], figures["certificate"]
    if changed is not None:
        rows.append(("pixels compared", changed["compared"]))
        where = f" ({changed['planes']})" if changed["planes"] else ""
        rows.append(("pixels changed", f"{changed['tiles_changed']:,}{where}"))
    if certificate is not None:
        rows.append(("certificate", Certificate.from_dict(certificate).sentence))
    print_pairs("verify", rows)
    for problem in found.problems[:_SHOWN]:
        tiles = f" (tiles {numbers_in_words(problem.tiles)})" if problem.tiles else ""
        click.echo(f"{problem.what}: {problem.where}{tiles}: {problem.reason}", err=True)
    _say_more(len(found.problems))
    for place in (changed or {}).get("places", [])[:_SHOWN]:
        click.echo(f"changed: {place}", err=True)
    for name, (before, now) in (changed or {}).get("header", {}).items():
        click.echo(f"changed: the volume's {name}: recorded {before!r}, now {now!r}", err=True)
    for line in found.litter[:_SHOWN]:
        click.echo(f"litter: {line}", err=True)
    for line in found.unclaimed[:_SHOWN]:
        click.echo(f"unclaimed: {line}", err=True)
    _say_not_encoded(found)
    if found.problems:
        click.echo(f"Mend it: {command('repair', found.store)}", err=True)
    if found.litter:
        click.echo("Litter does no harm; the next writer clears it away.", err=True)


def _say_not_encoded(found: Verification) -> None:
    """Tell what the journal cannot: whether tiles without a record never had one."""
    if found.opened is None:
        return
    lost = f"the end of a {layout.JOURNAL}/{MAIN} that was cut or copied in part is not found otherwise"
    if not found.wanted:
        click.echo(f"No selection is recorded, so no tile is wanted; {lost}.", err=True)
    elif found.not_encoded:
        click.echo(
            f"{found.not_encoded:,} of {found.wanted:,} wanted tiles are not in the store: never encoded, failed, "
            f"or their records are lost ({lost}).",
            err=True,
        )


def _say_more(count: int) -> None:
    if count > _SHOWN:
        click.echo(f"… and {count - _SHOWN} more; --json names them all.", err=True)


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
