"""Look at a folder of tars and write an experiment for it.

    dbp init FOLDER                     writes experiment/NAME.yaml, NAME from the folder's name
    dbp init FOLDER out=my/experiment/pets.yaml
    dbp init FOLDER keep_fraction=0.3
    dbp init FOLDER own_encoder=true    without pretrained weights: a small CLIP and evaluation sets of your own

The folder holds webdataset tars, as img2dataset writes them or others. The file says what was found, and
suggests where captions stand, encoders, numbers of clusters, a budget and the length of training, each with
its reason; every value is there to be changed. What it would cost on this machine is printed. Where the store
holds clusters of this pool, the file tells what temperatures would do. A file that exists is not replaced.
own_encoder=auto is true where pretrained weights are neither in the caches nor to be fetched.
`paths.store=FOLDER` and `paths.runs=FOLDER` say which store.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dbp.config import require
from dbp.errors import ConfigError, DbpError, WorldError, nearest
from dbp.names import name_of
from dbp.pools import own_encoder
from dbp.pools.looking import Look, lines_of, look
from dbp.pools.suggestion import command, experiment, suggest
from dbp.verbs.show import STORES, read_arguments

SETTINGS = ("out", "keep_fraction", "own_encoder", *STORES)


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp init`."""
    settings, words = read_arguments(arguments, SETTINGS)
    for name, equals, _ in (word.partition("=") for word in words):
        if equals and name.isidentifier():
            raise ConfigError(f"{name} is not a setting here. {nearest(name, SETTINGS)}")
    if len(words) != 1:
        raise ConfigError(f"dbp init takes one FOLDER of tars; given: {words or 'none'}")
    folder = Path(words[0]).expanduser().absolute()
    try:
        keep = float(text := settings.get("keep_fraction", "0.3"))
    except ValueError:
        raise ConfigError(f"keep_fraction={text!r}: it must be a number") from None
    require(0 < keep <= 1, "keep_fraction", keep, "above 0 and at most 1")
    asked = settings.get("own_encoder", "auto")
    require(asked in ("auto", "true", "false"), "own_encoder", asked, "auto, true or false")
    out = place(folder, settings.get("out"))
    found = look(folder)
    print(*lines_of(found), sep="\n")
    stores = {name: settings[name] for name in STORES}
    lacks = own_encoder.lacks_pretrained() if asked == "auto" else None
    is_own = asked == "true" or lacks is not None
    suggested, tried = suggest(found, folder, keep), trials(found, stores)
    typed = own_encoder.commands(out, {n: v for n, v in stores.items() if v != STORES[n]})
    if is_own:
        text = own_encoder.experiment(found, suggested, out, folder, typed, tried)
        print(f"{lacks.what if lacks else 'own_encoder=true'}: the experiment trains a small CLIP of its own")
    else:
        text = experiment(suggested, out, folder, lines_of(found), tried)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if out.exists():
            raise _exists(out) from None  # written meanwhile by another
        raise WorldError(
            f"cannot write {out}: {error.strerror or error}. Give another place with out=FILE."
        ) from error
    after = "\n  ".join(["", *typed]) if is_own else f" {command(out)} dry_run=true"
    print(*cost(out, stores, is_own), f"wrote {out}; next:{after}", sep="\n")


def place(folder: Path, out: str | None) -> Path:
    """Where the experiment goes.

    Raises:
        ConfigError: It exists, or could not be found as an experiment there.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "_", folder.name).strip("_") or "pool"
    path = Path(out).expanduser() if out else Path("experiment") / f"{name}.yaml"
    path = path.absolute()
    if path.suffix != ".yaml" or path.parent.name != "experiment":
        raise ConfigError(
            f"out={out}: an experiment is found by its name in a folder called experiment, so name a file like "
            f"{path.parent / 'experiment' / path.with_suffix('.yaml').name}"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", path.stem):
        raise ConfigError(f"out={out}: its name may have letters, digits, and _ . -")
    if path.exists():
        raise _exists(path)
    return path


def _exists(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} exists and is not replaced. Give another name with out=experiment/NAME.yaml, or move it away."
    )


def trials(found: Look, stores: dict[str, str]) -> list[str]:
    """What temperatures would do, from the newest DBP keep list of this pool; none without one."""
    from dbp.engine.store import Store
    from dbp.selection import trials as tried

    stores = STORES | stores
    store = Store(stores["paths.store"], stores["paths.runs"])
    for key in _lists_of(store, found):
        with contextlib.suppress(DbpError):
            stage, inputs = tried.open_selection(store, key)
            return [
                f"What temperatures would do to keep list {key} (* is its own), as `dbp tune keep={key[:12]}`:",
                *tried.lines_of("temperature", tried.by_temperature(stage, inputs, tried.TEMPERATURES)),
            ]
    return []


def _lists_of(store: Any, found: Look) -> Iterator[str]:
    """The keys of DBP's keep lists of these shards, the newest first."""
    from dbp.engine.paths import expand_shards
    from dbp.lineage import lineage

    entries = [e for e in store.entries() if e.stage == "select"]
    for entry in sorted(entries, key=lambda e: e.manifest["created"], reverse=True):
        if name_of(entry.manifest.get("made_by", {}).get("_target_", "")) != "select/dbp":
            continue
        for upstream in lineage(store, entry):
            shards = upstream.manifest.get("made_by", {}).get("shards")
            if upstream.stage == "index" and shards:
                with contextlib.suppress(DbpError):
                    paths = {Path(shard).absolute() for shard in expand_shards(shards)}
                    # A wildcard may name more today than it did.
                    counts = upstream.manifest["counts"]
                    is_same = counts["shards"] == len(found.shards) and (
                        not found.is_whole or counts["rows"] == found.rows
                    )
                    if is_same and paths == set(found.shards):
                        yield entry.key


def cost(out: Path, stores: dict[str, str], is_own: bool) -> list[str]:
    """What curating would cost on this machine, by the plan of the written experiment.

    It is tried as a person would: so a file that does not compose is found here.
    """
    from dbp.config import compose
    from dbp.curate import run
    from dbp.verbs.command_line import overrides

    given = [f"experiment={out.stem}", "dry_run=true", *(f"{n}={v}" for n, v in stores.items())]
    given += ["hold_out=null"] if is_own else []  # the list comes with the sets
    config = compose("curate", overrides(given), [str(out.parent.parent)])
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run(config)
    except (DbpError, ImportError, OSError) as error:
        why = str(error).splitlines()[0]
        return [f"What curating costs is not known yet: {why}", "Weights are fetched by dbp prefetch."]
    return ["What curating would cost here:", *said.getvalue().splitlines()]
