"""Reports for tests: one of any size that nothing was run for, and a browser that shows it."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.report.page.pictures import CELL, COLUMNS, ON_A_SHEET

CHROMIUM = next((p for n in ("chromium", "chromium-browser") if (p := shutil.which(n))), None)
EVIL = "<script>alert(1)</script>"
RIGHT_TO_LEFT = "قطة نائمة على كرسي"


def synthetic(num_arms: int, num_clusters: int, each: int, seed: int = 0) -> dict[str, Any]:
    """The data of a report with numbers out of a generator, in the shape that `gather` makes."""
    draw = np.random.default_rng(seed)
    kinds = ("uniform", "clip score", "ssp", "dbp")
    names = [f"{kinds[i % 4]} keep_fraction={0.1 + 0.05 * (i // 4):g}" for i in range(num_arms)]
    dense = [name for name in names if name.startswith("dbp")]
    methods = [name.rpartition(" ")[0] for name in names]
    columns = [f"task {i}" for i in range(7)]
    sizes = draw.integers(20, 400, num_clusters)
    intra, inter = draw.uniform(0.05, 0.4, num_clusters), draw.uniform(0.2, 0.7, num_clusters)
    kept = [(sizes * draw.uniform(0.05, 0.9, num_clusters)).astype(int) for _ in names]
    shown = min(num_clusters, 500)
    rows = int(sizes.sum())
    samples = [
        {
            "row": i, "uid": f"{i:09d}", "picture": i, "cluster": i // each,
            "caption": (EVIL, RIGHT_TO_LEFT, f"a photograph of thing number {i} on a table")[min(i, 2)],
            "distance": round(float(draw.uniform(0, 0.6)), 4),
        }
        for i in range(shown * each)
    ]  # fmt: skip

    def cell() -> dict[str, Any]:
        value = float(draw.uniform(0.1, 0.6))
        return {
            "text": f"{100 * value:.1f} ±0.5", "difference_text": "+1.0 [-0.2, +2.2]", "value": value,
            "interval": [value - 0.005, value + 0.005], "seeds": [value - 0.01, value, value + 0.01],
            "difference": 0.01, "difference_interval": [-0.002, 0.022], "p": 0.02, "adjusted_p": 0.2,
            "is_separate": False,
        }  # fmt: skip

    arms = [
        {
            "name": name, "method": method, "control": None, "state": "finished", "problems": [],
            "group": 0, "seeds": [0, 1, 2], "kept": int(k.sum()), "samples_seen": 12_800_000,
            "steps": 3125, "passes": 1.0, "flops": float(draw.uniform(1e18, 4e18)),
            "train_seconds": 3600.0, "keys": [dict.fromkeys(("keep", "train", "evaluate"), "0" * 24)] * 3,
            "keep": "0" * 24,
        }
        for name, method, k in zip(names, methods, kept, strict=True)
    ]  # fmt: skip

    def shares(spread: float) -> list[dict[str, Any]]:
        made = []
        for value, pool, ratio in (("en", 6000, 1 + spread), (RIGHT_TO_LEFT, 300, 1 - spread), (EVIL, 40, 1.0)):
            rate = 0.3 * ratio
            against = "" if ratio == 1 else "over" if ratio > 1 else "under"
            made.append(
                {
                    "value": value, "pool": pool, "share_of_pool": pool / 6340, "kept": round(pool * rate),
                    "share_of_kept": pool * ratio / 6340, "draws": None, "kept_rate": rate, "low": rate - 0.01,
                    "high": rate + 0.01, "baseline_rate": 0.3, "against_baseline": against, "ratio": ratio,
                }
            )  # fmt: skip
        return made

    return {
        "title": "synthetic", "made": "2024-01-01T00:00:00+00:00", "version": "0", "commit": None,
        "command": "dbp report", "store": "store", "notes": [], "problems": [], "arms": arms,
        "groups": [
            {
                "name": "suite", "reason": "", "notes": [],
                "columns": [{"key": c, "label": c, "about": c, "is_shown": True} for c in columns],
                "cells": {name: {c: cell() for c in columns} for name in names},
            }
        ],
        "funnels": [
            {
                "arms": [name], "key": "0" * 24, "rows": 2 * rows, "kept": int(k.sum()), "pool": "p",
                "steps": [
                    {"stage": "dedup", "before": 2 * rows, "after": rows, "reasons": [["duplicate", rows]]},
                    {"stage": "select", "before": rows, "after": int(k.sum()),
                     "reasons": [["beyond the cluster's quota", rows - int(k.sum())]]},
                ],
            }
            for name, k in zip(names, kept, strict=True)
        ],
        "overlaps": [
            {"pool": "p", "rows": rows, "names": names, "kept": [int(k.sum()) for k in kept],
             "jaccard": np.round(draw.uniform(0, 1, (num_arms, num_arms)), 4).tolist()}
        ],
        "kept_by": [
            {
                "name": "language", "field": "json:lang", "key": "l" * 24, "rows": 6340,
                "arms": [
                    {"arms": [name], "kept": 1900, "baseline_rate": 0.3, "draws": None, "others": 7,
                     "values": shares(0.1 * at)}
                    for at, name in enumerate(names[:8])
                ],
            }
        ],
        "clusterings": [
            {
                "key": "c" * 24, "pool": "p", "num_clusters": num_clusters, "size": sizes.tolist(),
                "d_intra": np.round(intra, 5).tolist(), "d_inter": np.round(inter, 5).tolist(),
                "complexity": np.round(intra * inter, 5).tolist(),
                "temperatures": {
                    "values": [0.02, 0.1, 0.5], "own": [0.02, 0.1, 0.5], "budgets": [int(kept[-1].sum())],
                    "quotas": [[(sizes * s).astype(int).tolist() for s in (0.2, 0.4, 0.6)]],
                    "effective": [10.0, 20.0, 30.0], "arm": names[-1],
                },
                "samples": samples, "num_shown": shown, "used_by": dense or names[:1],
                "own_temperature": dict.fromkeys(dense, 0.1),
                "arms": [
                    {"name": name, "kept": k.tolist(),
                     "reasons": [[True, "select", "within the quota"],
                                 [False, "select", "beyond the cluster's quota"]],
                     "fates": draw.integers(0, 2, len(samples)).tolist()}
                    for name, k in zip(names, kept, strict=True)
                ],
            }
        ],
        "methods": [
            {"stage": "select", "word": "dbp", "about": "Keep more of complex clusters.",
             "source": "Abbas et al. 2024", "settings": "temperature=0.1", "seconds": 1.5, "arms": names[:2]},
        ],
        "pairs": {"duplicates": [], "scores": [], "entries": [], "captions": []},
        "provenance": {"artifacts": [], "versions": [], "commands": []},
        "cost": {"arms": {}, "lines": []},
        "pictures": {
            "cell": CELL, "columns": COLUMNS, "on_a_sheet": ON_A_SHEET, "count": len(samples),
            "left_out": 0,
        },
    }  # fmt: skip


@contextlib.contextmanager
def shown(page: Path, width: int = 1280, **context: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page in headless Chromium, and the list of what it must not do: errors, dialogs, requests."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    sync = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, **context)
        wrongs: list[str] = []
        tab.on("console", lambda said: wrongs.append(f"console: {said.text}"))
        tab.on("pageerror", lambda error: wrongs.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (wrongs.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        own = ("file:", "blob:", "data:")
        tab.on("request", lambda asked: asked.url.startswith(own) or wrongs.append(asked.url))
        tab.goto(page.as_uri())
        try:
            yield tab, wrongs
        finally:
            browser.close()
