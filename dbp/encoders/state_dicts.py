"""State dicts from files that others wrote: what the file is, what is safe to read, and plain names.

Nothing is unpickled but tensors, plain values, and a few classes that hold values alone.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

from dbp.errors import ConfigError
from dbp.formats.tar_headers import OTHERS

WRAPPERS = ("module.", "model.")  # of DDP and of Lightning, when all names begin with one
COMPILED = "_orig_mod."  # of torch.compile, anywhere in a name
NESTS = ("state_dict", "model_state_dict", "model", "module")  # under which a training script saves the weights
AVERAGED = ("state_dict_ema", "model_ema")
SCRIPTED = ("input_resolution", "context_length", "vocab_size")  # numbers among OpenAI's weights


def read_weights(path: Path | str, averaged_first: bool = False) -> dict[str, Any]:
    """The tensors of a checkpoint under the names that the model gives them, on the CPU.

    Args:
        averaged_first: Take averaged weights (`state_dict_ema`, `model_ema`) where the file has both, as timm does.

    Raises:
        ConfigError: The file is something else, is cut short, or holds objects whose reading could run code.
    """
    path = Path(path)
    found = _read(path)
    for name in (*AVERAGED, *NESTS) if averaged_first else NESTS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise _refused(path, f"it holds a {type(found).__name__}, and not tensors by name")
    found = {name.replace(COMPILED, ""): value for name, value in found.items()}
    while wrapper := next((w for w in WRAPPERS if found and all(name.startswith(w) for name in found)), None):
        found = {name.removeprefix(wrapper): value for name, value in found.items()}
    for name in SCRIPTED:
        found.pop(name, None)
    if others := [name for name, value in found.items() if not hasattr(value, "untyped_storage")]:
        raise _refused(path, f"{others[0]!r} in it is a {type(found[others[0]]).__name__}, and not a tensor")
    if not found:
        raise _refused(path, "it holds no tensors")
    return found


def _read(path: Path) -> Any:
    import torch

    with open(path, "rb") as handle:
        head, size = handle.read(4096), handle.seek(0, 2)
    if not head:
        raise _refused(path, "it is empty. Fetch or write it again")
    if (length := int.from_bytes(head[:8], "little")) and head[8:9] == b"{" and length < 1 << 32:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            said = f"it is a safetensors file of {size:,} bytes, and {error}"
            raise _refused(path, f"{said}. It may be cut short: fetch or write it again") from error
    kind = next((kind for start, kind in OTHERS.items() if head.lstrip().startswith(start)), None)
    if kind is not None:
        raise _refused(path, f"it is {kind.partition(', since')[0]}")
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        names = [name.partition("/")[2] for name in zipfile.ZipFile(path).namelist()]
        if "constants.pkl" in names:
            raise _refused(
                path,
                'it is a TorchScript archive, whose reading runs its code. Where you trust it: python -c "import '
                f"torch; torch.save(torch.jit.load('{path}', 'cpu').state_dict(), 'weights.pt')\"; then give "
                "weights.pt",
            )
        if "data.pkl" not in names:
            raise _refused(path, "it is a zip archive that torch did not write")
    if head.isascii() and head.decode().isprintable():
        raise _refused(path, "it is a text file")
    try:
        # Opened here, since torch goes by the name of a file, too.
        with torch.serialization.safe_globals(_values()), open(path, "rb") as handle:
            return torch.load(handle, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if name := re.search(r"(?:GLOBAL|Unsupported (?:global|class))[: ]+(?:GLOBAL )?([\w.]+)", str(error)):
            raise _refused(
                path,
                f"it holds an object of {name[1]}, whose reading could run code. Where you trust it: python -c "
                f"\"import torch; c = torch.load('{path}', 'cpu', weights_only=False); "
                "torch.save(c['state_dict'] if isinstance(c, dict) else c.state_dict(), 'weights.pt')\"; then give "
                "weights.pt",
            ) from error
        raise _refused(path, "it is not a file that torch.save wrote") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise _refused(path, f"{said}. It may be cut short: fetch or write it again") from error


def _values() -> list[Any]:
    """Classes of plain values that training scripts save beside the weights; none of them runs code."""
    import argparse
    import pathlib

    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [
        getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType") and name != "ObjectDType"
    ]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *kinds, argparse.Namespace, pathlib.PosixPath]


def _refused(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"checkpoint {path} cannot be read as weights: {why}. A checkpoint is a state dict (torch.save or "
        "safetensors), or the weights.pt of a run of dbp train."
    )
