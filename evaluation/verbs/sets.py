"""Make evaluation sets from a pool: hold out a share of its samples, and write them as sets with their tasks.

    dbp sets pool=webdataset pool.shards='pool/{00000..00099}.tar' sets.share=0.05 sets.labels=labels.csv out=mine
    dbp sweep --config-dir mine/configs root=mine suite=own hold_out=mine/held_out.parquet experiment=…

Whether a sample is held out depends on its uid and sets.seed alone, so another order of shards, or a larger pool,
changes nothing. out gets

    wds_NAME_labels_test/, wds_NAME_retrieval_test/   sets in DataComp's layout, images byte for byte
    configs/task/NAME_….yaml, configs/suites/NAME.yaml    for --config-dir
    held_out.parquet    the uids for hold_out=, which keeps them from every arm
    sets.json           what was done, and how many samples were left out for which reason

sets.labels is a field of the json (json:FIELD; also parquet:FIELD, file:PATH:COLUMN, a name of columns), a column
of the index, or a file with the columns uid and label; without it the retrieval set alone is written. Rows whose
image has the same bytes as a held-out one are held out, too, and are in no set.
"""

import shutil
from pathlib import Path
from typing import Any

from dbp.errors import ConfigError


def run(config: Any) -> int:
    """Do what `dbp sets` does with a composed config."""
    from dbp.config import build
    from dbp.curate import open_store
    from dbp.engine.runners import PartsSettings
    from dbp.planning.plan import print_plan
    from dbp.settings import pool_of
    from evaluation.running.prepare import check_own
    from evaluation.sets.drawn import SetsSettings, draw, write_sets
    from evaluation.tasks import find_task, register

    settings: SetsSettings = build(config.sets, SetsSettings, "sets")
    parts: PartsSettings = build(config.parts, PartsSettings, "parts")
    out = _free(config.out)
    _refuse_taken_names(settings)
    index, store = pool_of(config).node(), open_store(config)
    if config.dry_run:
        print_plan(store, index)
        return 0
    pool = store.get(index)
    column = _column(config, settings.labels)
    labels = store.get(column.bind(pool=index)) if column else None
    drawn = draw(pool, settings, parts.workers if parts.runner == "processes" else 1, labels)
    for reason, count in drawn.counts.items():
        print(f"  {count:>12,}  {reason}")
    beside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was cut short
    try:
        tasks = write_sets(pool, settings, drawn, beside)
        register(tasks)
        check_own([find_task(key) for key in tasks], beside)  # they can be read as they are described
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for key, facts in tasks.items():
        print(f"{key}: {facts['test_size']:,} samples in {out / facts['folder']}")
    print(
        f"wrote {out}; next, with the same pool: --config-dir {out / 'configs'} root={out} suite={settings.name} "
        f"hold_out={out / 'held_out.parquet'}"
    )
    return 0


def _column(config: Any, labels: str | None) -> Any:
    """What reads the column of labels; none where they are in the index or in a file of labels.

    Raises:
        ConfigError: Its place is not as `columns` takes it.
    """
    from dbp.pools.values import KINDS, ReadColumn

    said = (config.get("columns") or {}).get(labels, labels)
    return ReadColumn.of(str(said), "sets.labels") if said and str(said).partition(":")[0] in KINDS else None


def _free(said: str | None) -> Path:
    """The folder to write.

    Raises:
        ConfigError: None is named, it exists, or the folder above it does not.
    """
    if not said:
        raise ConfigError("dbp sets needs out=FOLDER, a folder to write that is not there yet.")
    out = Path(said).expanduser().absolute()
    if out.exists():
        raise ConfigError(
            f"out={said!r} exists and is not replaced: results may rest on its sets. Give another name, or move it "
            "away."
        )
    if not out.parent.is_dir():
        raise ConfigError(f"out={said!r}: the folder {out.parent} does not exist. Make it first.")
    return out


def _refuse_taken_names(settings: Any) -> None:
    """Refuse a name that is a suite or a task of ours, before any work."""
    from evaluation.suites import suites
    from evaluation.tasks import load_tasks

    if settings.name in {**suites(), **load_tasks()}:
        raise ConfigError(f"sets.name={settings.name!r}: there is a suite or a task of this name. Give another.")
