"""What a job of a sweep does: its points of one role, from the files that the submitter left.

    python -m slurm.task FOLDER ROUND ROLE FIRST      task FIRST + SLURM_ARRAY_TASK_ID of the role

Every step is in the store or in a stage's own parts, so a task that was killed, preempted or moved to another
node goes on where it was. What fails leaves its reason beside the manifest.
"""

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dbp.engine.disk import replace_json
from dbp.engine.parts import make_here
from dbp.engine.runners import Slurm
from dbp.engine.stage import Node
from dbp.engine.store import Store
from dbp.engine.work import Runner
from dbp.errors import DbpError
from dbp.planning.rate import rate
from slurm.cluster.launcher import Launcher
from slurm.cluster.manifest import failure_file, read_points
from slurm.composer import SharedStages
from training.resume.signals import SIGNALS

Points = Sequence[tuple[str, dict[str, Any]]]

VECTORS = "vectors"  # folder of what an evaluation encodes, beside the manifest


def main(arguments: Sequence[str]) -> int:
    """Do one task; return 1 if one of its points failed."""
    folder, file, role, first = Path(arguments[0]), Path(arguments[1]), arguments[2], arguments[3]
    points = read_points(file, role, int(first) + int(os.environ.get("SLURM_ARRAY_TASK_ID", 0)))
    leave_on_signals()
    if role == "arm":
        points = own_share(points)
    work = {"shared": shared, "arm": arm, "evaluate": evaluate}[role]
    ended = work(folder, points) if points else {}
    for key, reason in ended.items():
        record(folder, key, role, reason)
    return 1 if any(ended.values()) else 0


def leave_on_signals() -> None:
    """Before the time limit: back into the queue. Training saves first, and calls the same then."""

    def leave(number: int, frame: Any) -> None:
        # Here and below: it loads Lightning, which takes seconds that a command of a person has not.
        from training.resume.preemption import requeue

        how = "" if number == signal.SIGTERM else requeue()
        if frame is None:  # called by training, which has saved and says so itself
            print(how or "asked to leave", flush=True)
            return
        raise SystemExit(f"left on {signal.Signals(number).name}; {how or 'what was made is kept.'}")

    for number in SIGNALS:
        signal.signal(number, leave)


def own_share(points: Points) -> Points:
    """The point of a packed task that this process has, if there is one for it; with a GPU of its own."""
    if points[0][1]["launcher"]["arms_per_job"] == 1:
        return points
    number = int(os.environ["SLURM_PROCID"])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = [gpu for gpu in visible.split(",") if gpu]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(os.environ["SLURM_LOCALID"]) % len(gpus)]
    # These processes share a job but do not train together.
    os.environ["SLURM_STEP_NUM_TASKS"] = "1"
    # The last task of an array may have fewer points than processes.
    return points[number : number + 1]


def record(folder: Path, key: str, role: str, reason: str | None) -> None:
    """Leave why a point failed, or nothing."""
    file = failure_file(folder, key)
    if reason is None:
        file.unlink(missing_ok=True)
        return
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", ""))
    replace_json(file, {"reason": reason, "role": role, "job": job, "time": time.time()})


def attempt(work: Callable[[], Any]) -> str | None:
    """Why something failed, if it did; its words go to the log, too. A run that saved and left has not."""
    try:
        work()
        return None
    except DbpError as error:
        from training.resume.preemption import Preempted

        if isinstance(error, Preempted):
            raise SystemExit(str(error)) from error
        reason = f"{type(error).__name__}: {error}"
    except Exception as error:  # a bug in one arm must not stop the others
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    print(reason, file=sys.stderr, flush=True)
    return reason


def open_points(points: Points) -> tuple[Store, Launcher, dict[str, dict[str, Node]]]:
    """The store, the launcher and the stages of some points of one sweep."""
    from omegaconf import OmegaConf

    from dbp.config import build

    shared = SharedStages()
    nodes = {key: shared.of(OmegaConf.create(config)) for key, config in points}
    config = points[0][1]
    launcher, paths = build(config["launcher"], Launcher, "launcher"), config["paths"]
    store = Store(paths["store"], paths["runs"], lambda line: print(line, flush=True), rate=rate)
    return store, launcher, nodes


def large_stages(launcher: Launcher) -> Runner:
    """Parts as arrays of SLURM, but a single part here: another job would only wait in the queue."""
    asked = launcher.resources("shared")
    settings = {
        "partition": launcher.partition,
        "account": launcher.account,
        "timeout_min": asked.minutes,
        "cpus_per_task": asked.cpus,
        "mem_gb": asked.mem_gb,
        "gpus_per_node": asked.gpus or None,
        "max_array": launcher.max_array,
        "setup": launcher.setup or None,
    }
    arrays = Slurm(launcher.part_workers, settings)
    return lambda work, stage, parts, inputs: (make_here if len(parts) == 1 else arrays)(work, stage, parts, inputs)


def shared(folder: Path, points: Points) -> dict[str, str | None]:
    """Make what several points rest on: all that their keep lists need, and the evaluation sets.

    Returns:
        Key of each point -> why it cannot be had, if so; likewise below for the points of the other roles.
    """
    from dbp.clustering.together import assign_together

    store, launcher, nodes = open_points(points)
    if launcher.part_workers:
        store.runner = large_stages(launcher)
    # Clusterings that differ in k alone read the vectors once; what fails, its points will say.
    attempt(lambda: assign_together(store, [point["cluster"] for point in nodes.values()]))
    ended: dict[str, str | None] = {}
    # Points share stages: what failed for one fails for the others, and is not tried again.
    tried: dict[Node, str | None] = {}
    with store.steady():
        for key, point in nodes.items():
            reason = None
            for node in (*shared_nodes(point), point["evaluate"].inputs["sets"]):
                if node not in tried and store.entry(node) is None:
                    tried[node] = attempt(lambda node=node: store.get(node))
                    store.loaded.clear()
                if reason := tried.get(node):
                    break
            ended[key] = reason
    return ended


def shared_nodes(nodes: dict[str, Node]) -> list[Node]:
    """What a point's keep list rests on, and what its captions are written with."""
    captions = nodes["train"].inputs.get("refined")
    writes = [up for up in captions.inputs.values() if up is not nodes["select"]] if captions else []
    if captions and nodes["select"] not in captions.lineage():
        writes.append(captions)  # of a column: the same for all arms
    return [*nodes["select"].inputs.values(), *writes]


def arm(folder: Path, points: Points) -> dict[str, str | None]:
    """Make the keep list of a point and train on it, as one of several ranks or alone.

    Of several ranks the first alone says how it ended.
    """
    from training.resume.ranks import joined
    from training.run import follow

    [(key, config)] = points
    with joined(Path(config["paths"]["runs"]).absolute()) as ranks:
        if not ranks.is_first:
            if attempt(lambda: follow(ranks)):
                raise SystemExit(1)
            return {}
        store, _, nodes = open_points(points)
        with store.steady():
            for node in shared_nodes(nodes[key]):
                if store.entry(node) is None:  # hundreds of arms must not each make what they share
                    # No reason is left beside the manifest, since the end of the shared job is the reason.
                    raise SystemExit(
                        f"{node.stage.name} {store.key(node)} is missing: the shared job did not make it. Its log "
                        "says why."
                    )
            reason = attempt(lambda: store.get(nodes[key]["train"]))
        ranks.say({"train": None})
    return {key: reason}


def evaluate(folder: Path, points: Points) -> dict[str, str | None]:
    """Evaluate the checkpoints of some points, those of one suite together.

    Of a point without a checkpoint nothing is said: its arm has, or the end of its job does.
    """
    from evaluation.stage import encode_together

    store, _, nodes = open_points(points)
    vectors = folder / VECTORS / points[0][0]
    trained = {key: point for key, point in nodes.items() if store.entry(point["train"])}
    waiting = [point["evaluate"] for point in trained.values()]
    waiting = [node for node in waiting if store.entry(node) is None]
    if len(waiting) > 1:
        attempt(lambda: encode_together(store, waiting, vectors))
    ended: dict[str, str | None] = {}
    for key, point in trained.items():
        node = point["evaluate"]
        kept = Node(replace(node.stage, vectors=str(vectors)), node.inputs)
        ended[key] = attempt(lambda kept=kept: store.get(kept))
        store.loaded.clear()
    if not any(ended.values()):
        shutil.rmtree(vectors, ignore_errors=True)  # a GB a checkpoint for DataComp's suite
    return ended


if __name__ == "__main__":
    import logging

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("dbp").setLevel(logging.INFO)
    sys.exit(main(sys.argv[1:]))
