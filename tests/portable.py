"""Run the fast tests as other machines would: four runs that combine other kernels, threads, orders and places.

    python tests/portable.py              all four runs of the whole fast tier
    python tests/portable.py --numbers    the first two runs, of the tests that compare numbers (what CI does)

Each value of `VALUES` occurs in at least one run, so a test whose answer hangs on last bits of products, ties,
thread counts, test order, time zone or locale fails in one of them.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAST = ["-m", "not slow and not nightly"]
# What numpy dispatches to at run time above its baseline; names that a processor lacks are skipped.
ABOVE_BASELINE = ("X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR", "AVX2", "FMA3", "AVX512F", "AVX512_SKX")
SIDE_BY_SIDE = ["-n", "2", "--dist", "loadscope", "--no-loadscope-reorder"]
RUNS: dict[str, tuple[dict[str, str], list[str]]] = {
    "oldest kernels, one thread": (
        {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
         "OMP_NUM_THREADS": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C"},
        SIDE_BY_SIDE,
    ),
    "AVX2 kernels, two threads": (
        {"MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell",
         "OMP_NUM_THREADS": "2", "TZ": "America/St_Johns", "LC_ALL": "C.UTF-8"},
        SIDE_BY_SIDE,
    ),
    "numpy and numba without AVX, four threads": (
        {"NPY_DISABLE_CPU_FEATURES": "*", "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "",
         "OMP_NUM_THREADS": "4", "TZ": "Pacific/Kiritimati"},
        SIDE_BY_SIDE,
    ),
    "one worker, random order": ({"OMP_NUM_THREADS": "1", "TZ": "UTC"}, ["--random-order"]),
}  # fmt: skip
# The tests that compare numbers: what a processor could change.
NUMBERS = (
    "test_caption_columns", "test_captioning", "test_comparison", "test_compat", "test_evaluation_faces",
    "test_evaluation_fine", "test_evaluation_forty", "test_evaluation_groups", "test_evaluation_metrics",
    "test_evaluation_multilabel", "test_evaluation_near_copies", "test_evaluation_probe",
    "test_evaluation_probing", "test_evaluation_reference", "test_evaluation_rerun", "test_evaluation_runner",
    "test_evaluation_significance", "test_evaluation_winogavil", "test_fairdedup", "test_geometry",
    "test_kmeans", "test_lloyd", "test_metaclip", "test_metaclip_languages", "test_online", "test_products",
    "test_quotas", "test_selection", "test_selection_order", "test_semdedup", "test_sorted_clusters",
    "test_tldr", "test_training_augmentation", "test_training_decoding", "test_training_memory",
    "test_training_mixture", "test_training_order", "test_training_runs", "test_training_step",
    "test_training_validation", "test_vectors",
)  # fmt: skip


def environment(values: dict[str, str]) -> dict[str, str]:
    """This process's environment with the values of a run; `*` names all of numpy's dispatched features."""
    wanted = dict(values)
    if wanted.get("NPY_DISABLE_CPU_FEATURES") == "*":
        from numpy._core import _multiarray_umath as numpy_core

        there = [name for name in ABOVE_BASELINE if name in numpy_core.__cpu_dispatch__]
        own = [name for name in there if numpy_core.__cpu_features__.get(name)]
        wanted["NPY_DISABLE_CPU_FEATURES"] = " ".join(own)
    return os.environ | wanted


def main(arguments: list[str]) -> int:
    """Run and time each; the exit status is 1 if any run failed."""
    numbers = "--numbers" in arguments
    names = list(RUNS)[:2] if numbers else list(RUNS)
    paths = [str(ROOT / "tests/unit" / f"{name}.py") for name in NUMBERS] if numbers else ["tests"]
    failed = []
    for name in names:
        values, options = RUNS[name]
        began = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", *FAST, *options, *paths]
        print(f"== {name}: {' '.join(f'{k}={v}' for k, v in values.items())}", flush=True)
        status = subprocess.run(command, cwd=ROOT, env=environment(values)).returncode
        print(f"== {name}: exit status {status} after {time.monotonic() - began:.0f} s", flush=True)
        failed += [name] if status else []
    if failed:
        print(f"failed: {'; '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
