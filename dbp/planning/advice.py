"""What a plan adds to its table: assumptions, another k, the size of parts, and whether it all fits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dbp.clustering.kmeans import semdedup_num_clusters
from dbp.engine.stage import Node
from dbp.planning.amounts import bytes_text, flops_text, seconds_text
from dbp.planning.effort import Effort, vector_bytes
from dbp.planning.efforts import effort_of
from dbp.planning.machine import Machine
from dbp.planning.outlook import Outlook

PART_BYTES = (8e6, 256e6)  # of a part's vectors: seconds of work, and far from any memory's bound
PARTS_OF_WORKER = 4  # so that workers end together


def advice(outlook: Outlook, efforts: Mapping[Node, Effort], machine: Machine | None) -> Iterator[str]:
    """Sentences about what is to be built: stages with their efforts, on a machine where any could be reckoned."""
    yield from outlook.notes
    for node in efforts:
        if node.stage.name == "similar":
            yield from another_k(outlook, node)
    yield from size_of_parts(outlook, list(efforts))
    if machine is None:
        return
    rates = (("reads", machine.reading), ("writes", machine.writing))
    disk = ", ".join(f"{verb} {bytes_text(rate)}/s" if rate else f"{verb}: not known" for verb, rate in rates)
    yield (
        f"this machine now: {flops_text(machine.product)}FLOP/s of fp32 products; disk {disk}, "
        f"{bytes_text(machine.disk_free)} free; memory {bytes_text(machine.memory_free)} free"
    )
    written = sum(effort.bytes_written for effort in efforts.values())
    if written > machine.disk_free:
        yield (
            f"WARNING: about {bytes_text(written)} will be written and {bytes_text(machine.disk_free)} are "
            "free on the store's disk. Free some (`dbp gc` says what may go), or set paths.store=FOLDER on "
            "another disk."
        )
    memory = {node: effort.memory * outlook.workers(node) for node, effort in efforts.items()}
    node = max(memory, key=lambda node: memory[node])
    if memory[node] > machine.memory_free:
        workers = outlook.workers(node)
        where = f" in {workers} processes" if workers > 1 else ""
        way_out = "Lower parts.workers, or run" if workers > 1 else "Run"
        yield (
            f"WARNING: {node.stage.name} will hold about {bytes_text(memory[node])} of memory{where}, and "
            f"{bytes_text(machine.memory_free)} are free. {way_out} it on a larger machine."
        )


def another_k(outlook: Outlook, similar: Node) -> Iterator[str]:
    """What dedup costs at the k that is set and at the one that balances assigning and comparing.

    Fit, assignment and comparison together: the fit's sample grows with k, so it is k squared.
    """
    clusters = similar.inputs["clusters"]
    outcome = outlook.outcome(clusters)
    if not (centroids := clusters.inputs.get("centroids")) or outcome is None or not outcome.rows:
        return
    wanted = clusters.stage.num_clusters  # type: ignore[attr-defined]
    suggested, k = semdedup_num_clusters(outcome.rows), outcome.clusters

    def cost(k: int) -> str:
        flops, seconds = 0.0, 0.0
        for node in (centroids, clusters, similar):
            sizes = outlook.sizes(node)
            assert sizes is not None, "the rows are known"
            effort = effort_of(node.stage, replace(sizes, clusters=k))
            assert effort is not None, "these stages have one"
            flops += effort.flops
            seconds += effort.on(outlook.machine(node), True).seconds or 0.0
        return f"{flops_text(flops)}FLOP, {seconds_text(seconds)}"

    own = f"{k:,} clusters ({cost(k)} to fit, assign and compare)"
    if k == suggested:
        said = "auto" if wanted == "auto" else f"{k:,}"
        yield (
            f"dedup.num_clusters={said}: {own} balance assigning with comparing, sqrt(0.75 n); half as many "
            f"{cost(max(k // 2, 1))}, twice as many {cost(2 * k)}"
        )
    else:
        yield f"dedup.num_clusters={wanted}: {own}; suggested: {suggested:,} ({cost(suggested)}), sqrt(0.75 n)"


def size_of_parts(outlook: Outlook, nodes: Sequence[Node]) -> Iterator[str]:
    """Which parts the vectors come in, and which size suits the rows and workers."""
    for node in nodes:
        rows_per_part = getattr(node.stage, "rows_per_part", None)
        sizes = outlook.sizes(node)
        if rows_per_part is None or sizes is None or not sizes.rows * sizes.width:
            continue
        row = vector_bytes(1, sizes.width)
        fair = sizes.rows / (PARTS_OF_WORKER * sizes.workers)
        suggested = min(round(min(max(fair, PART_BYTES[0] / row), PART_BYTES[1] / row)), sizes.rows)
        now = min(rows_per_part, sizes.rows)
        is_fair = suggested / 2 <= now <= suggested * 2
        better = "" if is_fair else f"; suggested: {suggested:,} rows ({bytes_text(suggested * row)})"
        count = -(-sizes.rows // now)
        yield (
            f"parts of vectors: {count:,} of {now:,} rows ({bytes_text(now * row)}) and more, up to the end of a "
            f"shard{better}"
        )
        return
