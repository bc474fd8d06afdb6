"""The `dbp` command: finds a verb's module by name and hands it the arguments.

Nothing heavy is imported before the verb is known, so that help answers at once.
"""

import ast
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from dbp.verbs.terminal import print_anywhere, read_utf8

# verb -> module; a module has `run(config)` where the verb reads the config, else `main(arguments)`.
VERBS = {
    "curate": "dbp.curate",
    "train": "training.train",
    "evaluate": "evaluation.verbs.evaluate",
    "compare": "evaluation.verbs.compare",
    "report": "evaluation.verbs.report",
    "sweep": "slurm.sweep",
    "sets": "evaluation.verbs.sets",
    "bench": "training.bench",
    "show": "dbp.verbs.show",
    "why": "dbp.verbs.show",
    "ls": "dbp.verbs.show",
    "gc": "dbp.verbs.gc",
    "export": "dbp.verbs.export",
    "import": "dbp.verbs.importing",
    "uids": "dbp.verbs.uids",
    "parts": "dbp.verbs.parts",
    "prefetch": "dbp.verbs.prefetch",
    "rehearse": "dbp.verbs.rehearse",
    "tune": "dbp.verbs.tune",
    "init": "dbp.verbs.init",
    "compat": "dbp.compat",
}
LIGHT = (
    "compare",
    "report",
    "show",
    "why",
    "ls",
    "gc",
    "export",
    "uids",
    "compat",
    "tune",
    "init",
)  # do not read the config
HYDRA = ("curate", "train", "evaluate")  # modules that are Hydra programs of their own, too
ABOUT = {
    "curate": "from a pool to a keep list",
    "train": "curate, then train CLIP on the keep list",
    "evaluate": "a checkpoint on a suite of tasks",
    "compare": "two checkpoints on the same test samples: better, worse, cannot tell",
    "report": "one page to look at: what was kept, what it brought, where it came from",
    "sweep": "a grid of arms, one table",
    "sets": "evaluation sets of your own, from a share of a pool that is held out",
    "bench": "where a step's time goes: feeding or the model",
    "show": "an artifact: manifest, lineage, counts",
    "why": "why a sample stayed or went",
    "ls": "what the store holds",
    "gc": "what may go, what is in use, what can be resumed; removes with delete=true",
    "export": "a keep list, shards or vectors for other tools",
    "import": "keep lists, vectors and clusters of other tools",
    "uids": "union, intersection, difference and overlap of uid lists",
    "parts": "long stages part by part, for any scheduler",
    "prefetch": "fetch weights, for nodes without a network",
    "rehearse": "a curation of a synthetic pool of any size",
    "tune": "what temperatures would do, from a finished keep list",
    "init": "look at a folder of tars and write an experiment for it",
    "compat": "the original repository's three scripts",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 1 a person can mend it, 2 wrong usage."""
    print_anywhere()
    if arguments is None:
        read_utf8()
    try:
        status = _main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(arguments: list[str]) -> int:
    # Threads that spin while they wait slow a shared machine many times over; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from dbp import __version__

        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        from dbp.errors import nearest

        print(f"dbp: there is no verb {verb!r}. {nearest(verb, VERBS)}", file=sys.stderr)
        return 2
    if "-h" in rest or "--help" in rest:
        print(_help(verb))
        return 0
    from dbp.errors import DbpError

    try:
        return _run(verb, rest)
    except DbpError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130


def _run(verb: str, rest: list[str]) -> int:
    if verb in HYDRA and any(flag in rest for flag in ("-m", "--multirun")):
        from dbp.verbs.command_line import multirun

        os.execv(sys.executable, [sys.executable, "-m", VERBS[verb], *multirun(rest)])
    module_name = VERBS[verb]
    if verb in LIGHT:
        return importlib.import_module(module_name).main(verb, rest) or 0
    import logging

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("dbp").setLevel(logging.INFO)
    logging.getLogger().setLevel(logging.WARNING)
    if verb == "import":
        return importlib.import_module(module_name).main(verb, rest) or 0
    from dbp.config import compose
    from dbp.verbs.command_line import overrides

    folders, print_only, keys = _flags(rest)
    if verb in ("sweep", "parts", "rehearse", "bench"):
        return importlib.import_module(module_name).main(keys, folders, print_only)
    config = compose(verb, overrides(keys), folders)
    if print_only:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config))
        return 0
    status = importlib.import_module(module_name).run(config)
    return status if isinstance(status, int) and not isinstance(status, bool) else 0


def _flags(rest: list[str]) -> tuple[list[str], bool, list[str]]:
    from dbp.errors import ConfigError

    folders: list[str] = []
    print_only = False
    keys: list[str] = []
    waiting = list(rest)
    while waiting:
        argument = waiting.pop(0)
        if argument in ("--config-dir", "-cd"):
            if not waiting:
                raise ConfigError("--config-dir needs a folder")
            folders.append(waiting.pop(0))
        elif argument.startswith("--config-dir="):
            folders.append(argument.partition("=")[2])
        elif argument == "--cfg":
            print_only = True
            if waiting and waiting[0] in ("job", "all"):
                waiting.pop(0)
        elif argument.startswith("-"):
            raise ConfigError(
                f"{argument} is no option here. Settings are given as key=value; "
                "options are --config-dir FOLDER, --cfg and --help."
            )
        else:
            keys.append(argument)
    return folders, print_only, keys


def _usage() -> str:
    width = max(map(len, ABOUT))
    verbs = "\n".join(f"  {verb:<{width}}  {about}" for verb, about in ABOUT.items())
    return (
        "Which image-caption pairs should CLIP train on, and does it pay?\n\n"
        f"usage: dbp VERB [key=value ...]\n\n{verbs}\n\n"
        "dbp VERB --help tells more. A first look without data: dbp sweep experiment=glyphs"
    )


def _help(verb: str) -> str:
    """A verb's help from its module's docstring, read without importing the module."""
    package, *module = VERBS[verb].split(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(next(iter(spec.submodule_search_locations)), *module)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    about = ast.get_docstring(ast.parse(path.read_text())) or ABOUT[verb]
    if verb in (*LIGHT, "parts", "import", "rehearse", "bench"):
        return about
    from dbp.verbs.command_line import help_text

    return help_text(verb, about)


if __name__ == "__main__":
    sys.exit(main())
