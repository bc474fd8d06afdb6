"""What a manifest says about the program that made an artifact: versions, commit, memory."""

import contextlib
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path


def peak_memory() -> int:
    """Most bytes that this process has held at once."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@cache
def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    names = ("density-based-pruning", "torch", "open_clip_torch", "timm", "numpy", "numba", "pyarrow", "pillow")
    found = {"python": platform.python_version()}
    for name in (*names, "lightning"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def commit() -> str | None:
    """The commit of the checkout that runs, with `+` when it has uncommitted changes."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, text=True, capture_output=True, timeout=5, check=True
        ).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def gpu() -> str | None:
    """The name of the GPU that this process has computed on; none if on none."""
    torch = sys.modules.get("torch")  # not imported: nothing was computed by it
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda.get_device_name()
