"""The tokens of a picture: what an image network holds of each place, before it is pooled."""

from typing import Any

from jaxtyping import Float

from dbp.errors import ConfigError


def tokens_of(
    visual: Any, images: Float[Any, "b 3 h w"], layer: int, norm: str = "normalize_intermediates"
) -> Float[Any, "b t d"]:
    """The output of one layer at each place of the pictures, row by row; class tokens are left out.

    Args:
        visual: An image tower of open_clip, or a network of timm.
        images: Normalised pictures on the network's device.
        layer: Its number, from 0, or from the end: -1 is the last. Blocks of a transformer; the stem and the
            four stages of a ResNet.
        norm: The tower's word for its last norm, which is applied where the tower has one.

    Raises:
        ConfigError: The network shows no layers, or has none of that number.
    """
    if not hasattr(visual, "forward_intermediates"):
        raise ConfigError(
            f"captioner.encoder: {type(visual).__name__} shows no tokens of its layers. Choose a ViT or a "
            "ResNet of open_clip or timm."
        )
    try:
        found = visual.forward_intermediates(
            images, indices=[layer], intermediates_only=True, output_fmt="NCHW", **{norm: True}
        )
    except (AssertionError, IndexError) as error:
        raise ConfigError(
            f"captioner.layer={layer}: {type(visual).__name__} has no such layer ({error}). -1 is its last."
        ) from error
    maps = found["image_intermediates"] if isinstance(found, dict) else found
    return maps[0].flatten(2).transpose(1, 2)
