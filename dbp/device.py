"""Which device computes."""

from dbp.errors import ConfigError


def pick_device(device: str) -> str:
    """`auto` is the first CUDA device where there is one, else the CPU.

    Raises:
        ConfigError: CUDA is asked for and there is none, or no device has this name.
    """
    if device == "cpu":
        return device
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device={device}: there is no such device. Set auto, cpu, cuda or cuda:N.") from None
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={device}: this machine shows no CUDA device. Set device=cpu or auto.")
    return device
