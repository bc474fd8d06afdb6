"""From a composed config to typed, checked dataclasses, before any work begins.

The frame is typed and the slots are open: a node with `_target_` names a frozen dataclass, and `build`
merges the YAML into it. Unknown keys, wrong types and values out of range stop here, with the full
key and the nearest right spelling.
"""

import contextlib
import dataclasses
import importlib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from dbp.engine.paths import config_folder
from dbp.errors import ConfigError, nearest
from dbp.names import place_of

T = TypeVar("T")


def require(holds: bool, name: str, value: Any, must: str) -> None:
    """Refuse a value that a person set.

    Raises:
        ConfigError: `holds` is false; the message gives the name, the value and what it must be.
    """
    if not holds:
        raise ConfigError(f"{name}={value!r}: it must be {must}")


def build(node: Any, as_type: type[T] | None = None, path: str = "", **extra: Any) -> Any:
    """Make the dataclass that a config node describes.

    Args:
        node: A mapping, with `_target_` or for `as_type`.
        as_type: The dataclass to make when the node names none.
        path: The node's full key, for messages.
        extra: Fields given as objects, beside those in the node.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or range.
    """
    values = dict(_plain(node))
    target = values.pop("_target_", None)
    cls: Any = locate(target, path) if target else as_type
    if cls is None:
        raise ConfigError(f"{path} names no _target_: say which class it configures")
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
    for name in values:
        if name not in fields:
            known = [n for n in fields if n not in extra]
            raise ConfigError(
                f"{_join(path, name)}={values[name]!r} is not a setting of {cls.__name__}. "
                + (nearest(name, known) if known else f"{cls.__name__} has no settings.")
            )
    hints = typing.get_type_hints(cls)
    made = {n: _cast(v, hints[n], _join(path, n)) for n, v in values.items() if n not in extra}
    made |= {name: value for name, value in extra.items() if name in fields}
    for name, item in fields.items():
        absent = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if absent and name not in made:
            raise ConfigError(f"{_join(path, name)} is not set, and {cls.__name__} needs it")
    try:
        return cls(**made)
    except ValueError as error:
        kind = type(error) if isinstance(error, ConfigError) else ConfigError
        raise kind(_named(path, str(error))) from error


def _named(path: str, message: str) -> str:
    """Put the node's path before a message that begins with a field's name."""
    return _join(path, message) if re.match(r"^[a-z_]+(\[\d+\])?=", message) else message


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _plain(node: Any) -> Any:
    if type(node).__module__.startswith("omegaconf"):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(node, resolve=True)
    return node


def locate(target: str, path: str) -> type:
    """The dataclass that a config or a manifest names, by registered name or dotted path.

    Raises:
        ConfigError: It cannot be imported, or is no dataclass.
    """
    module, _, name = place_of(target).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{_join(path, '_target_')}={target!r} cannot be imported: {error}. Give the dotted name "
            "of a dataclass that this Python can import."
        ) from error
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{_join(path, '_target_')}={target!r} is no dataclass")
    return cls  # type: ignore[return-value]


def _cast(value: Any, hint: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin is Literal:
        options = typing.get_args(hint)
        if value not in options:
            words = [str(option) for option in options]
            raise ConfigError(f"{path}={value!r}: {nearest(str(value), words)}")
        return value
    if origin in (Union, types.UnionType):
        return _cast_union(value, typing.get_args(hint), path)
    if origin in (tuple, list):
        inner = typing.get_args(hint)[0]
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{path}={value!r}: it must be a list")
        return origin(_cast(v, inner, f"{path}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={value!r}: it must be a mapping of names to values")
        return dict(value)
    if dataclasses.is_dataclass(hint):
        kind: Any = hint
        made = value if isinstance(value, kind) else build(value, kind, path)
        if not isinstance(made, kind):
            raise ConfigError(
                f"{path} is a {type(made).__name__}; it must be a {kind.__name__}. Choose options that fit."
            )
        return made
    return _cast_scalar(value, hint, path)


def _cast_union(value: Any, options: tuple[Any, ...], path: str) -> Any:
    if value is None and type(None) in options:
        return None
    failures = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _cast(value, option, path)
        except ConfigError as error:
            failures.append(error)
    raise failures[0] if failures else ConfigError(f"{path}={value!r}: it must be null")


def _cast_scalar(value: Any, hint: Any, path: str) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{path}={value!r}: it must be true or false")
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str) and re.fullmatch(r"-?\d{1,3}([_,]\d{3})+|-?\d+", value):
            return int(value.replace(",", "").replace("_", ""))
        raise ConfigError(f"{path}={value!r}: it must be a whole number")
    if hint is float:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            if not isinstance(value, bool) and math.isfinite(number := float(value)):
                return number
        raise ConfigError(f"{path}={value!r}: it must be a finite number")
    if hint is str:
        if isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        raise ConfigError(f"{path}={value!r}: it must be text")
    if hint is Path:
        return Path(value)
    raise ConfigError(f"{path}={value!r}: it must be a {getattr(hint, '__name__', hint)}")


# composition

# Settings at the root that are text: a folder may be called 2024, and a key of an artifact be 12e345.
TEXTS = frozenset(
    (
        *("until", "upstream", "root", "protocol", "precision", "suite", "checkpoint", "pretrained", "name"),
        *("sweep.name", "sweep.control", "export.datacomp", "export.clip_benchmark", "parts.device"),
        *("evaluate.device", "evaluate.devices", "evaluate.crops"),
    )
)
NUMBER_LIKE = re.compile(r"[-+]?[\d_.]*\d[\d_.]*(e[-+]?\d+)?|[-+]?inf|nan|true|false", re.IGNORECASE)
# Keys that YAML files of the user fill: key -> folder of a config folder. It is not called `suite`, since Hydra
# would take `suite=NAME` for a choice among its files.
OWN = {"tasks": "task", "suites": "suites"}

GROUP = re.compile(r"^[~+]{0,2}([A-Za-z_/]+)(@[A-Za-z_.]+)?$")


def groups() -> dict[str, list[str]]:
    """The config groups and their options."""
    home = config_folder()
    return {
        folder.name: sorted(f.stem for f in folder.glob("*.yaml"))
        for folder in sorted(home.iterdir())
        if folder.is_dir()
    }


def is_group(key: str) -> bool:
    """Whether a key of the command line chooses an option of a config group."""
    match = GROUP.match(key)
    return match is not None and match[1] in groups()


def compose(verb: str, overrides: list[str], config_dirs: list[str] | None = None, resolve: bool = True) -> Any:
    """Compose a verb's config with overrides, as Hydra does, with errors that say what was meant.

    Args:
        verb: Name of the primary config.
        overrides: As Hydra reads them.
        config_dirs: Further folders of configs.
        resolve: Resolve interpolations now; a sweep does it after it has set its own values.

    Raises:
        ConfigError: A group, an option or a key does not exist, or an override cannot be read.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    GlobalHydra.instance().clear()
    for folder in config_dirs or []:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir {folder}: there is no such folder.")
    folders = ",".join(f"file://{Path(folder).absolute()}" for folder in config_dirs or [])
    extra = [f"hydra.searchpath=[{folders}]"] if folders else []
    try:
        with initialize_config_dir(str(config_folder().absolute()), version_base="1.3"):
            config = hydra_compose(verb, overrides=overrides + extra)
            if (in_quotes := [_as_text(config, override) for override in overrides]) != overrides:
                config = hydra_compose(verb, overrides=in_quotes + extra)
            _check_root(config, overrides)
            with open_dict(config):
                for key, folder in OWN.items():
                    setattr(config, key, {**_own_files(folder, config_dirs or []), **(config.get(key) or {})})
            if resolve:
                close(config)
            return config
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_what_was_meant(verb, overrides, error)) from error
    except YAMLError as error:
        raise ConfigError(f"a config cannot be read as YAML: {' '.join(str(error).split())}") from error


def close(config: Any) -> None:
    """Resolve all interpolations of a config in place.

    A text that holds `${` itself, as the name of a folder may, stays escaped, so that reading it gives the text:
    OmegaConf's own `resolve` leaves it bare, and the next reader takes it for an interpolation.
    """
    from omegaconf import OmegaConf

    def hidden(text: str) -> str:  # an odd number of backslashes escapes; the others stand for half as many
        return re.sub(r"(\\*)\$\{", lambda m: m[1][::2][1:] + HIDDEN if len(m[1]) % 2 else m[0], text)

    def escaped(text: str) -> str:
        return re.sub(rf"(\\*)(?:\$\{{|{HIDDEN})", lambda m: m[1] * 2 + r"\${", text)

    _change_texts(config, hidden)
    OmegaConf.resolve(config)
    _change_texts(config, escaped)


HIDDEN = "\ue000{"  # stands for an escaped `${` meanwhile; Unicode gives its first sign no meaning


def _change_texts(node: Any, change: Callable[[str], str]) -> None:
    from omegaconf import DictConfig, ListConfig

    if not isinstance(node, DictConfig | ListConfig):
        if isinstance(said := node._value(), str) and "{" in said and (new := change(said)) != said:
            node._set_value(new)
    elif isinstance(node._value(), dict | list):  # not one that is an interpolation, missing or null
        inner: Any = node
        for key in inner if isinstance(inner, DictConfig) else range(len(inner)):
            _change_texts(inner._get_node(key), change)


def _as_text(config: Any, override: str) -> str:
    """An override in quotes, if its value looks like a number and its setting is text: 1e5 is no 100000.0 there."""
    from omegaconf import DictConfig, OmegaConf

    key, _, value = override.partition("=")
    if not NUMBER_LIKE.fullmatch(value):
        return override
    parent, _, name = (path := key.lstrip("+")).rpartition(".")
    node = OmegaConf.select(config, parent) if parent else None
    if path not in TEXTS:
        if not isinstance(node, DictConfig) or not (target := node.get("_target_")):
            return override
        hint = typing.get_type_hints(locate(target, parent)).get(name)
        kinds = set(typing.get_args(hint) or (hint,))
        if str not in kinds or kinds & {int, float, bool}:
            return override
    return f"{key}='{value}'"


def _check_root(config: Any, overrides: list[str]) -> None:
    """Refuse a key at the root of a config file that no verb reads; Hydra checks the command line alone.

    Raises:
        ConfigError: It names the nearest key that is read.
    """
    from omegaconf import OmegaConf

    frame = OmegaConf.load(config_folder() / "frame.yaml")
    where = " ".join(o for o in overrides if o.startswith(("experiment", "+", "debug"))) or "a config file"
    for path, known in (("", {*frame, *groups(), "hydra"}), ("export", set(frame.export))):
        for name in map(str, config[path] if path else config):
            if name not in known:
                said = f"{_join(path, name)} is not a setting, and {where} sets it."
                raise ConfigError(f"{said} {nearest(name, sorted(map(str, known)))}")


def _own_files(kind: str, config_dirs: list[str]) -> dict[str, Any]:
    """What the YAML files in the folders `task` or `suites` of config folders say, by the name of the file.

    Raises:
        ConfigError: A file is not a mapping, two have one name, or a suite says more than its tasks.
    """
    from omegaconf import DictConfig, OmegaConf

    found: dict[str, Any] = {}
    places: dict[str, Path] = {}
    for folder in dict.fromkeys(path.resolve() for path in (config_folder(), *map(Path, config_dirs))):
        for file in sorted(folder.glob(f"{kind}/*.yaml")):
            said = OmegaConf.load(file)
            if not isinstance(said, DictConfig):
                raise ConfigError(f"{file}: it must be a mapping of names to values.")
            if (other := places.setdefault(file.stem, file)) != file:
                raise ConfigError(f"{file} and {other} have one name, and results name one of them. Rename one.")
            if kind == "suites":
                if list(said) != ["tasks"]:
                    raise ConfigError(f"{file}: a suite is a list of tasks, tasks: [NAME, …], and nothing else.")
                found[file.stem] = said.tasks
                continue
            for name in ("class_names", "templates"):  # a file is named from beside the YAML file
                if isinstance(said.get(name), str):
                    said[name] = str(folder / kind / Path(said[name]).expanduser())
            found[file.stem] = said
    return found


def _what_was_meant(verb: str, overrides: list[str], error: Exception) -> str:
    text, known = str(error).strip(), groups()
    chosen = {o: match[1] for o in overrides if (match := GROUP.match(o.partition("=")[0])) and match[1] in known}
    missing = re.search(r"ould not find '(\w+)/([^']+)'\n+Available options in '\w+':\n((?:\t.+\n)+)", text)
    if missing:
        group, value, options = missing[1], missing[2], missing[3].split()
        here = [o for o, own in chosen.items() if own == group and o.endswith(f"={value}")]
        other = " ".join(o for o in overrides if o.startswith(("experiment=", "debug="))) or "a config file"
        said = here[0] if here else f"{other} sets {group}={value}"
        return f"{said}: there is no such {group}. {nearest(value, options)}"
    if match := re.search(r"[Cc]ould not override '([^']+)'", text):
        full = match[1]
        return f"{full} is not a setting here. {_nearest_key(verb, full, [o for o in chosen if full not in o])}"
    return f"the configuration cannot be composed: {' '.join(text.split())}"


def _nearest_key(verb: str, full: str, chosen: list[str]) -> str:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    full = full.split("@")[0]
    with initialize_config_dir(str(config_folder().absolute()), version_base="1.3"):
        config = OmegaConf.to_container(hydra_compose(verb, overrides=chosen), resolve=False)
    parent, node = "", config
    for part in full.split("."):
        if not isinstance(node, dict) or part not in node:
            break
        parent, node = _join(parent, part), node[part]
    names = [str(name) for name in node if name != "_target_"] if isinstance(node, dict) else []
    if not names:
        return f"{parent} has no settings."
    rest = full.removeprefix(parent).lstrip(".").split(".")[0]
    said = nearest(rest, names)
    return said.replace("Did you mean '", f"Did you mean '{parent}.") if parent else said
