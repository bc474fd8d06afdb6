"""A terminal that knows ASCII alone: every verb prints, and what it cannot show stands there as an escape."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dbp.__main__ import VERBS

UID = "katze-\u732b"
CAPTION = "a caf\u00e9 \u2013 \u732b \u00b1"
LOCALES = {
    "terminal": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    "files": {"LC_ALL": "C", "PYTHONUTF8": "0"},  # Python reads and writes files in ASCII, too
}


def dbp(folder: Path, locale: str, *words: str) -> subprocess.CompletedProcess[str]:
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("LC_", "LANG", "PYTHONIO", "PYTHONUTF8"))}
    return subprocess.run(
        [sys.executable, "-m", "dbp", *words],
        cwd=folder, env=clean | LOCALES[locale], capture_output=True, encoding="ascii", timeout=240,
    )  # fmt: skip


def done(folder: Path, locale: str, *words: str) -> str:
    ran = dbp(folder, locale, *words)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


@pytest.fixture(scope="module", params=list(LOCALES))
def curated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder with a pool, curated under such a locale: folder, locale, key of the keep list."""
    folder = tmp_path_factory.mktemp("house")
    with tarfile.open(folder / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(8):
            image = io.BytesIO()
            Image.new("RGB", (8, 8), (30 * number, 7, 7)).save(image, "PNG")
            for name, content in (("png", image.getvalue()), ("txt", f"{CAPTION} {number}".encode())):
                info = tarfile.TarInfo(f"{UID}{number}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    done(
        folder, request.param, "curate", "pool=webdataset", "pool.shards=0.tar", "dedup=exact", "filter=none",
        "select=uniform", "budget.num_kept=4",
    )  # fmt: skip
    (manifest,) = (folder / "store" / "select").glob("*/manifest.json")
    return folder, request.param, json.loads(manifest.read_text())["key"]


def test_curate_ls_show_and_gc_print(curated: tuple[Path, str, str]) -> None:
    folder, locale, key = curated
    assert key in done(folder, locale, "ls")
    assert key in done(folder, locale, "show", key)
    assert "0 folders" in done(folder, locale, "gc")


def test_why_shows_a_uid_as_escapes(curated: tuple[Path, str, str]) -> None:
    folder, locale, key = curated
    said = done(folder, locale, "why", f"{UID}3", f"keep={key}")
    assert said.startswith("katze-\\u732b3 (row 3)")
    ran = dbp(folder, locale, "why", f"{UID}9", f"keep={key}")
    assert ran.returncode == 1
    assert "katze-\\u732b9" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_report_writes_its_page_in_utf_8(curated: tuple[Path, str, str]) -> None:
    folder, locale, _ = curated
    done(folder, locale, "report")
    (page,) = (folder / "runs" / "reports").glob("*/report.html")
    assert not page.read_text(encoding="utf-8").isascii()


def test_compare_prints(curated: tuple[Path, str, str]) -> None:
    folder, locale, _ = curated
    ran = dbp(folder, locale, "compare", "r\u00e9sultats", "autres\u2026")
    assert ran.returncode == 1
    assert "Error: " in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", [*VERBS, "--help"])
def test_every_help_prints(verb: str, tmp_path: Path) -> None:
    assert done(tmp_path, "terminal", verb, *(["--help"] if verb in VERBS else []))
