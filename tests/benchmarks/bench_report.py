"""How large a report is and how soon it shows: 40 arms x 500 clusters with 6,000 pictures, and 5,000 clusters.

    python tests/benchmarks/bench_report.py

The pictures are coloured noise on gradients, which WebP makes about as large as photographs.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from report_toys import shown, synthetic

from evaluation.report.page.pictures import Pictures
from evaluation.report.page.write import page


class Photographs:
    """A pool without end whose pictures are as hard to compress as photographs."""

    digest = "photographs"

    def image(self, row: int) -> Image.Image:
        draw = np.random.default_rng(row)
        coarse = Image.fromarray(draw.integers(0, 255, (9, 9, 3), np.uint8)).resize((224, 224), 3)
        noise = draw.normal(0, 14, (224, 224, 3))
        return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def main() -> None:
    """Print size and time for each scale."""
    began = time.perf_counter()
    pictures = Pictures(6000)
    numbers = [pictures.add(Photographs(), row) for row in range(6000)]  # type: ignore[arg-type]
    sheets = pictures.finish()
    print(f"{pictures.num_pictures:,} thumbnails of 224 pixels made in {time.perf_counter() - began:.0f} s")
    for num_arms, num_clusters, each in ((40, 500, 12), (40, 5000, 12), (200, 500, 12)):
        data = synthetic(num_arms, num_clusters, each)
        for sample in data["clusterings"][0]["samples"]:
            sample["picture"] = numbers[sample["row"]]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "report.html"
            file.write_text(page(data, sheets))
            times = []
            for _ in range(3):
                with shown(file) as (tab, wrongs):
                    times.append(float(tab.evaluate("document.documentElement.dataset.shown")))
                    began = time.perf_counter()
                    tab.locator("#clusters svg.scatter").press("ArrowLeft")
                    pressed = time.perf_counter() - began
                    assert not wrongs, wrongs
            print(
                f"{num_arms} arms, {num_clusters:,} clusters, {pictures.num_pictures:,} pictures: "
                f"{file.stat().st_size / 1e6:.1f} MB, shown after "
                f"{min(times) / 1000:.2f} to {max(times) / 1000:.2f} s, another cluster {pressed:.2f} s"
            )


if __name__ == "__main__":
    main()
