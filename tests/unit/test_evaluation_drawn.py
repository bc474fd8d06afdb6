"""Figures are drawn again if what they show has changed, or one is gone."""

from pathlib import Path

import pytest

from evaluation.report.plots import draw_once


def test_figures_stand_until_their_content_changes_or_one_is_gone(tmp_path: Path) -> None:
    drawn = []

    def draw() -> None:
        drawn.append(1)
        for name in ("a.png", "b.svg"):
            (tmp_path / name).write_text(str(len(drawn)))

    assert draw_once(tmp_path, "one", __file__, draw)
    assert not draw_once(tmp_path, "one", __file__, draw)
    assert draw_once(tmp_path, "two", __file__, draw)
    (tmp_path / "b.svg").unlink()
    assert draw_once(tmp_path, "two", __file__, draw)
    assert len(drawn) == 3
    (tmp_path / ".drawn.json").write_text("[")
    assert draw_once(tmp_path, "two", __file__, draw)


def test_drawing_that_fails_leaves_no_mark(tmp_path: Path) -> None:
    def draw() -> None:
        raise OSError("no space left")

    assert draw_once(tmp_path, "one", __file__, lambda: (tmp_path / "a.png").write_text(""))
    with pytest.raises(OSError, match="no space"):
        draw_once(tmp_path, "two", __file__, draw)
    assert draw_once(tmp_path, "one", __file__, lambda: (tmp_path / "a.png").write_text(""))
