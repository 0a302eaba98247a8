"""Damage, then ``repair``: the bytes of an undisturbed run, encoding only what is broken; and kills in between."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from random import Random

from .child import pause
from .flips import DAMAGES, flipped, other_files, shard_files
from .kills import start_until_first_write
from .outcome import LostError, Outcome, Row, SilentError, detected, survived
from .scenarios import COMPACT, REENCODE, REPAIR, Scenario
from .scenarios import prepare as prepare_scenario
from .stage import TILES, Stage, Watch, content, known, litter, require_same, stored
from .truth import has_command


def missing_repair() -> str | None:
    """Why the rows cannot run."""
    return None if has_command("repair") else "this version has no repair"


def _prepare(stage: Stage) -> None:
    stage.data["expected"] = content(stage.whole)
    stage.data["known"] = known(stage.whole)


def repair_words(stage: Stage, store: Path) -> list[str | Path]:
    """The command that mends a store of the stage's volume."""
    words = ["repair", store, "--json", "--volume", stage.volume, "--checkpoint", stage.base / "patches.pth"]
    return [*words, "--device", "cpu"]


def _repair(stage: Stage, kind: str, rng: Random) -> Outcome:
    store = stage.copy(stage.whole)
    most = _break(store, kind, rng)
    watch = Watch()
    child = stage.run(*repair_words(stage, store), before=watch.install)
    journal = kind == "journal"
    if journal and child.code in (2, 3, 4):
        return detected(n_named_as_not_mendable=1)  # what the journal alone knew cannot be rebuilt
    assert child.code == 0, f"repair ended with {child.code}: {child.said[-800:]}"
    require_same(store, stage.data["expected"], f"after repair of {kind}")
    assert known(store) == stage.data["known"], "the journal says something else"
    assert watch.calls <= most, f"{watch.calls} tiles were encoded, at most {most} were broken"
    verified = stage.run("verify", store, "--json")
    assert verified.code == 0, f"verify after repair: {verified.said[-500:]}"
    return survived(n_tiles_encoded=watch.calls)


def _break(store: Path, kind: str, rng: Random) -> int:
    """Damage a store; the number of tiles that can be broken by it."""
    if kind == "flips":
        broken = rng.sample(shard_files(store), rng.randrange(1, 3))
        for path in broken:
            data = bytearray(path.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        return len(broken)
    if kind == "shards":
        path = rng.choice(shard_files(store))
        DAMAGES[rng.choice(sorted(DAMAGES))](path, rng)
        return 2
    if kind == "swapped":
        first, second = rng.sample(shard_files(store), 2)
        shutil.move(first, store / "aside")
        shutil.move(second, first)
        shutil.move(store / "aside", second)
        return 4
    files = [path for path in other_files(store) if (path.suffix == ".jsonl") == (kind == "journal")]
    path = rng.choice(files)
    if kind == "journal":
        context = flipped(path, rng.randrange(path.stat().st_size), rng.randrange(8))
        context.__enter__()  # and never mended
    else:
        DAMAGES[rng.choice(sorted(DAMAGES))](path, rng)
    return TILES if kind == "journal" else 0


def _drop(stage: Stage, _: int, rng: Random) -> Outcome:
    """Lines of the journal with several wrong bytes, dropped: no other embedding is lost, none becomes another."""
    store = stage.copy(stage.whole)
    path = store / "journal" / "main.jsonl"
    lines = path.read_bytes().split(b"\n")
    for number in rng.sample(range(len(lines) - 1), rng.randrange(1, 3)):
        line = bytearray(lines[number])
        for place in rng.sample(range(len(line)), rng.randrange(2, 5)):
            line[place] ^= rng.randrange(1, 256)
        lines[number] = bytes(line)
    path.write_bytes(b"\n".join(lines))
    child = stage.run(*repair_words(stage, store), "--drop-lines")
    if child.code == 4:
        assert stage.run("verify", store, "--json").code == 4, "what is still damaged is verified as whole"
        return detected(n_named_as_not_to_be_dropped=1)
    assert child.code == 0, f"repair ended with {child.code}: {child.said[-800:]}"
    there, before = known(store), stage.data["known"]
    if any(before.get(tile) != said for tile, said in there.items()):
        raise SilentError("what is recorded is not what was recorded before")
    verified = stage.run("verify", store, "--json")
    assert verified.code == 0, f"verify after repair: {verified.said[-500:]}"
    again = stage.run(*stage.encode(store))
    assert again.code == 0, again.said[-800:]
    assert again.result["tiles_encoded"] == len(before) - len(there), "more was encoded than was missing"
    require_same(store, stage.data["expected"], "after dropping lines and encoding again")
    assert known(store) == before, "the journal says something else"
    return survived(n_lines_dropped=len(child.result["dropped"]))


def kill_row(scenario: Scenario, name: str, longest: float, trials: int, weight: float) -> Row:
    """SIGKILL at a random moment of a scenario's command."""

    def trial(stage: Stage, _: int, rng: Random) -> Outcome:
        store = scenario.begin(stage)
        watch = Watch()
        child = start_until_first_write(stage, scenario.words(stage, store), watch, scenario.tweak)
        pause(rng.uniform(0.0, longest))
        child.send(signal.SIGKILL)
        assert child.wait() in (0, -9), f"exit code {child.code}: {child.said[-500:]}"
        if scenario is not REPAIR:
            missing = (scenario.kept | watch.acknowledged) - set(known(store))
            if missing:
                raise LostError(f"tiles {sorted(missing)} are gone")
            stored(store)
        again = scenario.run(stage, store)
        assert again.code == 0, f"the next run ended with {again.code}: {again.said[-800:]}"
        require_same(store, stage.data["content"], "after the next run")
        assert known(store) == stage.data["known"], "the journal says something else"
        assert not litter(store, wrote=again.result.get("tiles_encoded", 0) > 0), litter(store)
        return survived(n_killed_at_work=int(child.code != 0))

    return Row(
        name,
        f"SIGKILL at a random moment: {scenario.name}",
        "acknowledged tiles stay; the same command ends with the bytes of an undisturbed run",
        trial,
        trials=trials,
        prepare=lambda stage: prepare_scenario(stage, scenario) and None,
        needs=missing_repair if scenario is REPAIR else None,
        weight=weight,
    )


def _gc(stage: Stage, _: int, rng: Random) -> Outcome:
    """``gc --delete`` on what a killed encode left, or beside a living one: nothing that counts is removed."""
    store = stage.copy(stage.half) if rng.random() < 0.5 else stage.here / "s.zarr"
    before = set(known(store)) if store.exists() else set()
    words, watch, beside = stage.encode(store), Watch(), rng.random() < 0.4
    child = start_until_first_write(stage, words, watch)
    pause(rng.uniform(0.0, 0.2))
    if not beside:
        child.send(signal.SIGKILL)
        child.wait()
    gc = stage.run("gc", store, "--delete", "--json")
    assert gc.code in (0, 2, 5), f"gc ended with {gc.code}: {gc.said[-500:]}"
    assert child.wait() in (0, -9), f"the encode beside gc ended with {child.code}: {child.said[-500:]}"
    kept = set(known(store)) if (store / "zarr.json").exists() else set()
    if (before | watch.acknowledged) - kept:
        raise LostError(f"tiles {sorted((before | watch.acknowledged) - kept)} are gone")
    again = stage.run(*words)
    assert again.code == 0, again.said[-800:]
    require_same(store, stage.data["expected"], "after gc and the next run")
    return survived(n_beside_a_writer=int(beside), n_refused=int(gc.code == 5))


ROWS = (
    Row(
        "gc",
        "`gc --delete` after a kill, or beside a living encode",
        "nothing that counts is removed; the same command ends with the bytes of an undisturbed run",
        _gc,
        trials=30,
        prepare=_prepare,
        needs=lambda: None if has_command("gc") else "this version has no gc",
        weight=25,
    ),
    kill_row(COMPACT, "kill-compact", 0.2, 20, 15),
    kill_row(REENCODE, "kill-reencode", 0.2, 20, 15),
    kill_row(REPAIR, "kill-repair", 0.3, 20, 15),
    Row(
        "repair",
        "bits flipped, files damaged, removed or swapped; then `repair`",
        "the bytes of an undisturbed run, encoding only what was broken; or named as what cannot be mended",
        _repair,
        cases=lambda _: ["flips", "shards", "swapped", "metadata", "journal"] * 8,
        prepare=_prepare,
        needs=missing_repair,
        weight=30,
    ),
    Row(
        "drop-lines",
        "lines of the journal with several wrong bytes each; then `repair --drop-lines`, then the same encode",
        "only what they said is missing, then the bytes of an undisturbed run; or named as not to be dropped",
        _drop,
        trials=30,
        prepare=_prepare,
        needs=missing_repair,
        weight=40,
    ),
)
