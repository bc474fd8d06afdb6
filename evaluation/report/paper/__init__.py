"""What the papers report beside what runs of ours found: `dbp report paper=NAME`.

`published` reads the papers' numbers with their units and marks, `catalogue` and the file of each paper
say which run of ours a row asks for, `runs` reads ours from the store, `match` brings the two together,
`measure` computes with both kinds of noise, `compare` makes the tables, `render` prints them.
"""

from evaluation.report.paper.compare import compare
from evaluation.report.paper.render import FORMATS, render
from evaluation.report.paper.runs import read_runs

__all__ = ["FORMATS", "compare", "read_runs", "render"]
