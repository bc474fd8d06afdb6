"""The order of the stages that remove rows: dedup, filter and selection."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from test_write_shards import png

from dbp.__main__ import main

# Four images, each three times; the weights of a group's copies are far apart.
WEIGHTS = [10 * (number // 4) + number % 4 for number in range(12)]


@pytest.fixture
def keep(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Curate a pool of twelve samples; the kept keys, and why each other one went."""
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number, weight in enumerate(WEIGHTS):
            members = {"png": png(number % 4), "txt": b"a caption", "json": json.dumps({"w": weight}).encode()}
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{number:02d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    at = [f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"]

    def run(*settings: str) -> tuple[set[str], dict[str, str]]:
        given = [
            f"pool.shards={tmp_path}/0.tar",
            "dedup=exact",
            "score=from_column",
            "score.column=w",
            "+columns.w=json:w",
        ]
        given += [
            "filter=top_fraction",
            "filter.fraction=0.5",
            "select=top_score",
            "budget.num_kept=2",
            *at,
            *settings,
        ]
        assert main(["curate", *given]) == 0, capsys.readouterr().err
        key = capsys.readouterr().out.rpartition("keep list ")[2].split()[0]
        out = tmp_path / f"{key}.txt"
        assert main(["export", f"keep={key}", "format=txt", f"out={out}", *at]) == 0
        kept = set(out.read_text().split())
        why = {}
        for number in set(range(12)) - {int(name) for name in kept}:
            capsys.readouterr()
            assert main(["why", f"{number:02d}", f"keep={key}", *at]) == 0
            why[f"{number:02d}"] = capsys.readouterr().out
        return kept, why

    return run


def test_each_order_removes_what_its_stages_remove_in_turn(keep) -> None:
    # Dedup keeps the first of each image (weights 0 to 3), the filter the better half, selection the best two.
    kept, why = keep("order=[dedup,filter,select]")
    assert kept == {"02", "03"}
    assert "dedup" in why["11"]
    assert "filter" in why["00"]
    # The filter keeps weights 12, 13 and 20 to 23; of 06 and 10, and of 07 and 11, the first stays.
    kept, why = keep("order=[filter,dedup,select]")
    assert kept == {"08", "09"}, "of images 0 and 1 only copies with weights 20 and 21 passed the filter"
    assert "filter" in why["00"]
    assert "dedup" in why["11"]
    assert "select" in why["06"]
    # Selection keeps weights 2 and 3 of what dedup left, and the filter the better half of these.
    kept, why = keep("order=[dedup,select,filter]")
    assert kept == {"03"}
    assert "select" in why["00"]
    assert "filter" in why["02"]


def test_the_usual_order_is_the_one_without_the_setting(keep, tmp_path: Path) -> None:
    assert keep("order=[dedup,filter,select]") == keep()
    assert len(list((tmp_path / "store" / "select").iterdir())) == 1


@pytest.mark.parametrize(
    "order", ["[filter,select]", "[select,dedup,filter]", "dedup", "[dedup,dedup,filter,select]"]
)
def test_an_order_that_is_none_is_refused_with_those_there_are(
    order: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["curate", "pool.shards=x.tar", "select=uniform", "budget.num_kept=2", f"order={order}"]) == 1
    said = capsys.readouterr().err
    assert "order=" in said
    assert "[filter,dedup,select]" in said
