"""Published weights and tokenizers: whether they are at hand, or a network that serves them.

Looked for before any work, and again before a model is loaded: without a network each library would try several
times, for each encoder and arm, and name its own reason.
"""

import importlib.util
import json
import os
import sys
import threading
import urllib.request
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dbp.errors import MissingError

SECONDS = 3.0  # that a server has to answer
WAY_OUT = (
    "Fetch weights where there is a network (dbp prefetch, with the same settings, and HF_HOME and TORCH_HOME on a "
    "disk that both machines see), give the encoder's checkpoint=FILE, or, in a sweep, train one (sweep.encoder)."
)
# A tokenizer is one of these; which of them depends on its kind.
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model", "spiece.model", "vocab.json")
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")


def openclip_lacks(
    model: str | None, pretrained: str | None, config: dict[str, Any] | None
) -> Iterator[MissingError]:
    """What a model of open_clip needs from a hub, and neither is here nor can be fetched.

    Args:
        model: open_clip's name.
        pretrained: Tag of published weights; none for weights of another origin.
        config: As its JSON has it; read where only the name is given.
    """
    what = f"weights {pretrained!r} of {model} (open_clip)"
    if pretrained and model and ("open_clip" in sys.modules or is_offline()):
        clip = Path("~/.cache/clip").expanduser()  # open_clip's own cache, of what lies in no hub
        if "open_clip" not in sys.modules and _is_hopeless(clip):
            yield MissingError(f"{what}: neither {hub_folder()}, {clip} nor a network", WAY_OUT)
        else:
            yield from _of_openclip(what, model, pretrained, clip)
    text = text_config(model, config)
    whose = f"of {model or 'the encoder'} (open_clip)"
    if tokenizer := text.get("hf_tokenizer_name"):
        yield from _of_hub(f"tokenizer {tokenizer} {whose}", tokenizer, TOKENIZER)
    if network := text.get("hf_model_name"):
        yield from _of_hub(f"config {network} {whose}", network, ("config.json",))


def _of_openclip(what: str, model: str, pretrained: str, clip: Path) -> Iterator[MissingError]:
    import open_clip

    found = open_clip.pretrained.get_pretrained_cfg(model, pretrained)
    if hub := found.get("hf_hub"):
        repository, file = os.path.split(hub)
        file = file or "open_clip_pytorch_model.bin"
        others = ("open_clip_model.safetensors", f"{Path(file).stem}.safetensors")
        yield from _of_hub(what, repository, (file, *others))
    elif url := found.get("url"):
        yield from _of_url(what, url, clip)


def timm_lacks(model: str) -> Iterator[MissingError]:
    """The published weights of a network of timm, if they are neither here nor can be fetched."""
    if is_in_hub(f"timm/{model}", TIMM_FILES) or not is_offline():
        return
    what = f"weights of {model} (timm)"
    torch_home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    kept = Path(torch_home).expanduser() / "hub" / "checkpoints"
    if "timm" not in sys.modules and _is_hopeless(kept):
        yield MissingError(f"{what}: neither {hub_folder(f'timm/{model}')} nor a network", WAY_OUT)
        return
    import timm

    found = timm.get_pretrained_cfg(model)
    if found is None or found.file or found.state_dict:
        return
    if found.hf_hub_id:
        files = (found.hf_hub_filename,) if found.hf_hub_filename else TIMM_FILES
        yield from _of_hub(what, found.hf_hub_id, files)
    elif isinstance(found.url, str) and found.url:
        yield from _of_url(what, found.url, kept)


def _is_hopeless(folder: Path) -> bool:
    """Whether no weights at all are kept, and no network is there: then no library need be asked where it looks."""
    is_empty = not any(folder.glob("*")) and not any(hub_folder().glob("models--*"))
    return is_empty and not is_reachable(_endpoint())


def is_in_hub(repository: str, files: Collection[str]) -> bool:
    """Whether the cache of the hub holds one of some files of a repository."""
    return any(any(hub_folder(repository).glob(f"snapshots/*/{file}")) for file in files)


def hub_folder(repository: str = "") -> Path:
    """The cache of the hub, or where it keeps a repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    name = f"models--{repository.partition('@')[0].replace('/', '--')}"
    return Path(HF_HUB_CACHE, name) if repository else Path(HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether nothing can come from the hub: the environment says so, or it does not answer."""
    words = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    if any(word.upper() in ("1", "ON", "YES", "TRUE") for word in words):
        return True
    return not is_reachable(_endpoint())


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def is_reachable(url: str) -> bool:
    """Whether the server of an address, or the proxy before it, takes a connection; asked once by this process."""
    asked = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(asked.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(asked.hostname or ""):
        asked = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return _answers(asked.hostname or "", asked.port or (80 if asked.scheme == "http" else 443))


@cache
def _answers(host: str, port: int) -> bool:
    import socket

    answers: list[bool] = []

    def ask() -> None:
        try:
            socket.create_connection((host, port), SECONDS).close()
            answers.append(True)
        except OSError:
            pass

    # A name without a server of names may take minutes, which no timeout of a socket limits.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS)
    return bool(answers)


def _of_url(what: str, url: str, folder: Path) -> Iterator[MissingError]:
    here = folder / os.path.basename(urlsplit(url).path)
    if not here.is_file() and not is_reachable(url):
        yield MissingError(f"{what}: neither {here} nor a network", WAY_OUT)


def _of_hub(what: str, repository: str, files: Collection[str]) -> Iterator[MissingError]:
    if is_in_hub(repository, files) or Path(repository).is_dir() or not is_offline():
        return
    yield MissingError(f"{what}: neither {hub_folder(repository)} nor a network", WAY_OUT)


def text_config(model: str | None, config: Any) -> dict[str, Any]:
    """`text_cfg` of a config, or of a model that open_clip lists, which is read without importing it."""
    if isinstance(config, str | Path):
        config = json.loads(Path(config).read_text())
        config = config.get("model_cfg", config)
    spec = importlib.util.find_spec("open_clip") if model and not config else None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder, "model_configs", f"{str(model).replace('/', '-')}.json")
        config = json.loads(file.read_text()) if file.is_file() else None
    return dict((config or {}).get("text_cfg", {}))
