"""What other temperatures, and other numbers of clusters, would do to a finished DBP keep list.

    dbp tune keep=KEY [temperature=0.02,0.05,0.1,0.2,0.5,1] [effective=0.8]

For the clustering that the list used, at its budget: entropy of P and the clusters that it amounts to,
clusters that are kept whole or stand at their floor, and how much neighbouring keep lists share. A temperature
means little by itself, since complexities differ from pool to pool and encoder to encoder, so the last line
says which temperature makes the effective clusters that share of the filled ones. No vector is read.

Where the store holds clusterings of the same rows with another k, they are compared at the list's temperature,
too. `paths.store=FOLDER` and `paths.runs=FOLDER` say which store; keys may be shortened.
"""

import contextlib

from dbp.config import require
from dbp.engine.store import Store
from dbp.errors import ConfigError
from dbp.selection.trials import (
    TEMPERATURES,
    advice,
    by_clustering,
    by_temperature,
    clusterings,
    lines_of,
    open_selection,
)
from dbp.verbs.show import read_arguments

SETTINGS = ("keep", "temperature", "effective", "paths.store", "paths.runs")


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp tune`."""
    settings, words = read_arguments(arguments, SETTINGS)
    if "keep" not in settings or words:
        raise ConfigError(
            "dbp tune needs keep=KEY, the key of a keep list of select=dbp; `dbp ls stage=select` lists keep "
            "lists" + (f". Not a setting: {words[0]}" if words else "")
        )
    values, share = TEMPERATURES, _number(settings.get("effective", "0.8"))
    if "temperature" in settings:
        text = settings["temperature"]
        values = tuple(_number(word) for word in text.strip("[]").split(","))
        is_right = all(0 < value < float("inf") for value in values)
        require(is_right, "temperature", text, "numbers above 0, divided by commas")
    require(0 < share < 1, "effective", settings.get("effective"), "a number between 0 and 1")
    store = Store(settings["paths.store"], settings["paths.runs"])
    stage, inputs = open_selection(store, settings["keep"])
    print(*lines_of("temperature", by_temperature(stage, inputs, values)), sep="\n")
    print(advice(stage, inputs, share))
    others = clusterings(store, store.find(settings["keep"]))
    if len(others) > 1:
        print("", *lines_of("clusters", by_clustering(store, stage, inputs, others)), sep="\n")


def _number(text: str) -> float:
    """A number as the user writes it; NaN for another word."""
    with contextlib.suppress(ValueError):
        return float(text)
    return float("nan")
