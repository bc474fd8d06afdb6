"""Where the set of a task lies under a root, in any of the layouts that can be read.

wds_vtab-dtd_test/            DataComp's folders
wds_vtab-dtd/                 CLIP_benchmark's
flickr_1k_test_image_text_retrieval/                         a download from the Hub, or in hf_cache/
datasets--nlphuji--flickr_1k_test_image_text_retrieval/      a cache of the Hub, or in hub/, hf_cache/
hf_cache/nlphuji___flickr_1k_test_image_text_retrieval/      as DataComp's download_evalsets.py leaves it
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dbp.engine.paths import is_of_macos
from dbp.errors import ConfigError
from evaluation.sets.benchmark import built_files, find_built
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.tasks import Task, load_tasks


def find_set(root: Path, task: Task) -> Path:
    """Find the folder of a task's set, in any layout that can be read; nothing is fetched.

    Raises:
        EvaluationDataError: It is in none of the places, which are all named, or the Hub's cache holds
            several revisions.
    """
    if task.is_built:
        assert task.built is not None
        return find_built(root, task.folder, task.built)
    for place in places(root, task):
        if place.is_dir():
            return _snapshot(place) if (place / "snapshots").is_dir() else place
    looked = ", ".join(shown(root, task))
    fetch = f"hf download --repo-type dataset {task.hub} --local-dir {root / str(task.hub).partition('/')[2]}"
    raise EvaluationDataError(
        f"There is no set of {task.name} under {root}. Looked for the folders {looked}. Put the set in "
        f"one of them, or set root to the folder that holds it.{f' It is fetched by: {fetch}' if task.hub else ''}"
    )


def set_files(root: Path) -> list[Path]:
    """List the files of all sets of known tasks under a root, to tell whether any has changed."""
    tasks = (task for task in load_tasks().values() if not Path(task.folder).is_absolute())
    return sorted({file for task in tasks for file in _files(root, task)})


def files_of(task: Task) -> list[list[Any]]:
    """The files of a set that lies in a folder of its own, as `described`.

    Raises:
        ConfigError: There is no such folder; it names the setting.
    """
    folder = Path(task.folder)
    if not folder.is_dir():
        raise ConfigError(
            f"tasks.{task.key}.folder={task.folder!r}: there is no such folder. Put the set there, or correct the "
            "path."
        )
    return described(folder, sorted(_files(folder, task)))


def described(root: Path, files: Iterable[Path]) -> list[list[Any]]:
    """Files by what tells whether one has changed: name, under a root where it lies there, size, time."""
    return [[_shown(root, file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def shown(root: Path, task: Task) -> list[str]:
    """The places of a set as messages name them: under the root, or whole where they are not under it."""
    return [_shown(root, place) for place in places(root, task)]


def _shown(root: Path, path: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _files(root: Path, task: Task) -> set[Path]:
    if task.is_built and task.built is not None:
        found = built_files(root, task.folder, task.built)
    else:
        found = (file for place in places(root, task) for file in place.rglob("*"))
    return {file for file in found if file.is_file() and not is_of_macos(file)}


def places(root: Path, task: Task) -> list[Path]:
    """Where a set may lie, the first that is there counts.

    Source:
        DataComp's and CLIP_benchmark's names of folders; huggingface_hub's cache; the cache of the
        `datasets` library in `hf_cache`, where DataComp's `download_evalsets.py` puts three sets.
    """
    if Path(task.folder).is_absolute():
        return [Path(task.folder)]
    names = [task.folder, task.folder.removesuffix("_test")]
    if task.clip_benchmark is not None:
        names.append("wds_" + task.clip_benchmark.removeprefix("wds/").replace("/", "-"))
    if task.hub is not None:
        owner, name = task.hub.split("/")
        cache = f"datasets--{owner}--{name}"
        names += [name, task.hub, cache, f"hub/{cache}", f"{owner}___{name}"]
        names += [f"hf_cache/{place}" for place in (name, cache, f"hub/{cache}", f"{owner}___{name}")]
    return [root / name for name in dict.fromkeys(names)]


def _snapshot(cache: Path) -> Path:
    """The files of the revision that a cache of the Hub calls main, or of its only one."""
    main = cache / "refs" / "main"
    if main.is_file() and (named := cache / "snapshots" / main.read_text(encoding="utf-8").strip()).is_dir():
        return named
    revisions = sorted(path for path in (cache / "snapshots").iterdir() if path.is_dir())
    if len(revisions) == 1:
        return revisions[0]
    raise EvaluationDataError(
        f"{cache / 'snapshots'} holds {len(revisions)} revisions and refs/main beside it names none of "
        "them, so it is open which to read. Keep one, or fetch the set again."
    )
