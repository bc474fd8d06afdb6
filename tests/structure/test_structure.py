"""The shape of the house: which way imports run, how long files are, what help may load."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from dbp.__main__ import VERBS as verbs
from dbp.__main__ import main
from dbp.names import PLACES

ROOT = Path(__file__).parents[2]
PACKAGES = ("dbp", "training", "evaluation", "slurm")  # each may import those before it
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted(file for file in (ROOT / "tests").rglob("*.py"))
HEAVY = {"torch", "torchvision", "open_clip", "timm", "faiss", "lightning", "hydra", "omegaconf"}
HEAVY |= {"wandb", "webdataset", "matplotlib", "clip_benchmark", "sklearn", "submitit"}

# Inside dbp: folders of algorithms, and the few arrows between them.
ALGORITHMS = {"encoders", "clustering", "dedup", "scoring", "filtering", "selection", "captioning", "metadata"}
ARROWS = {("dedup", "clustering"), ("selection", "clustering"), ("selection", "metadata")}
ARROWS |= {("captioning", "encoders")}  # its image network
ARROWS |= {("dedup", "encoders")}  # texts of concepts are encoded for FairDeDup alone
ARROWS |= {("scoring", "encoders")}  # mirrored images are encoded for their score alone
ARROWS |= {("selection", "captioning")}  # TL;DR selects by clusters of codes
# A module of torch cannot be defined without torch: nobody imports these files at the top of another.
NETWORKS = {"dbp/captioning/model.py"}
# The recipe, what it reads of the config, and what each stage costs.
KNOWS_ALL = {"dbp/curate.py", "dbp/settings.py", "dbp/planning/efforts.py"}

# Verbs stay short: a reviewer reads them from top to bottom.
NOT_VERBS = {"__init__.py", "command_line.py"}
VERBS = {"dbp/curate.py", "training/train.py", "training/bench.py", "slurm/sweep.py"} | {
    file.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for file in (ROOT / package / "verbs").glob("*.py")
    if file.name not in NOT_VERBS
}
# Rooms whose registered classes are methods, each in a file that is read in one go.
METHODS = ("select/", "score/", "filter/", "dedup/", "cluster/", "online/")
MACHINERY = {"dbp/clustering/kmeans.py", "dbp/dedup/similar.py"}  # what several methods share


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imports(file: Path, top_only: bool = False) -> Iterator[str]:
    """The dotted names that a file imports, with the names that it takes from them."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}: imports here are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            if not (top_only and (inner or typing)):
                yield from visit(child)

    return visit(ast.parse(file.read_text()))


def ours(file: Path) -> Iterator[list[str]]:
    """The imports of a file that lie in our packages, as lists of names."""
    yield from (name.split(".") for name in imports(file) if name.split(".")[0] in PACKAGES)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_run_from_curation_to_sweeps_and_never_back(file: Path) -> None:
    here = PACKAGES.index(name_of(file).split("/")[0])
    wrong = [".".join(name) for name in ours(file) if PACKAGES.index(name[0]) > here]
    assert not wrong


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {name_of(file).removesuffix(".py").replace("/", "."): file for file in FILES}

    def module_of(name: list[str]) -> str | None:
        for dotted in (".".join(name), ".".join(name[:-1])):
            if dotted in modules:
                return dotted
        return None

    needs = {
        module: {found for name in ours(file) if (found := module_of(name))} - {module}
        for module, file in modules.items()
    }
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("file", sorted((ROOT / "dbp/data").rglob("*.py")), ids=name_of)
def test_the_nouns_import_no_algorithm(file: Path) -> None:
    assert not [".".join(name) for name in ours(file) if name[1] in ALGORITHMS]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_science_and_no_store_knows_the_cost_model(file: Path) -> None:
    parts = name_of(file).split("/")
    if parts[1] in {*ALGORITHMS, "data", "exact", "engine"}:
        assert not [".".join(name) for name in ours(file) if name[1] == "planning"]


@pytest.mark.parametrize("file", sorted((ROOT / "dbp").rglob("*.py")), ids=name_of)
def test_only_the_recipe_knows_several_algorithms(file: Path) -> None:
    if name_of(file) in KNOWS_ALL:
        return
    home = name_of(file).split("/")[1]
    met = {name[1] for name in ours(file) if len(name) > 1} & ALGORITHMS - {home}
    if home in ALGORITHMS:
        assert met <= {to for start, to in ARROWS if start == home}
    else:
        assert len(met) <= 1


@pytest.mark.parametrize("file", sorted((ROOT / "dbp").rglob("*.py")), ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(file: Path) -> None:
    networks = tuple(name.removesuffix(".py").replace("/", ".") for name in NETWORKS)
    assert not [name for name in imports(file, top_only=True) if name.startswith(networks)]
    if name_of(file) in NETWORKS:
        return
    assert not {name.split(".")[0] for name in imports(file, top_only=True)} & HEAVY


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_are_short(file: Path) -> None:
    lines = len(file.read_text().splitlines())
    assert lines <= (200 if name_of(file) in VERBS else 400)


def test_every_verb_of_the_command_is_among_those_that_are_short() -> None:
    places = {f"{module.replace('.', '/')}.py" for module in verbs.values() if module != "dbp.compat"}
    assert places <= VERBS


@pytest.mark.parametrize("package", PACKAGES)
def test_at_most_a_dozen_files_lie_at_the_top_of_a_package(package: str) -> None:
    assert len(list((ROOT / package).glob("*.py"))) <= 12


def lines_of_code(file: Path) -> int:
    """Lines without those that are blank, comments or docstrings."""
    tree, left_out = ast.parse(file.read_text()), set[int]()
    for node in ast.walk(tree):
        is_home = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if is_home and ast.get_docstring(node) is not None:
            left_out |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(file.read_text().splitlines(), 1)
    return sum(number not in left_out and bool(line.partition("#")[0].strip()) for number, line in lines)


@pytest.mark.parametrize("name", sorted(name for name in PLACES if name.startswith(METHODS)))
def test_a_method_is_at_most_150_lines_of_code(name: str) -> None:
    file = f"{PLACES[name].rpartition('.')[0].replace('.', '/')}.py"
    assert file in MACHINERY or lines_of_code(ROOT / file) <= 150


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}
    assert not [name_of(file) for file in FILES if file.name in drawers]
    assert not (ROOT / "dbp/select").exists(), "it would shadow the standard library's select"
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("file", FILES + SCRIPTS, ids=name_of)
def test_annotations_are_read_at_run_time(file: Path) -> None:
    assert "__future__.annotations" not in set(imports(file))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_that_are_imported_are_ours(package: str) -> None:
    # Old wheels of open_clip ship a top-level package named training.
    found = importlib.import_module(package).__file__
    assert found is not None
    assert Path(found).parent.name == package
    assert Path(found).read_bytes() == (ROOT / package / "__init__.py").read_bytes()


def run_in_a_fresh_python(code: str) -> list[str]:
    """What a script prints as its last line, as words."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


LOADED = """
import sys
from dbp.__main__ import main
status = main({arguments!r})
assert status == 0, status
print("loaded", *(name for name in sys.modules if "." not in name))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["curate", "--help"], ["sweep", "-h"], ["why", "--help"]], ids=" ".join
)
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    loaded = set(run_in_a_fresh_python(LOADED.format(arguments=arguments)))
    assert "dbp" in loaded
    assert not loaded & (HEAVY | {"numpy", "pyarrow", "PIL"})


def test_help_names_every_verb_and_works_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dbp", "--help"], cwd=ROOT, text=True, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    for verb in ("curate", "train", "evaluate", "sweep", "show", "why", "ls", "gc", "export"):
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize("verb", verbs)
def test_the_help_of_a_verb_shows_how_it_is_called(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"dbp {verb}" in capsys.readouterr().out


def test_the_mathematics_loads_neither_hydra_nor_torch() -> None:
    code = (
        "import sys, dbp.clustering.geometry, dbp.selection.quotas, dbp.dedup.semdedup\n"
        "import dbp.formats.exchange\n"
        "print(*(name for name in sys.modules if '.' not in name))"
    )
    assert not set(run_in_a_fresh_python(code)) & HEAVY
