"""The settings of a captioner's network."""

from dataclasses import dataclass

from dbp.config import require


@dataclass(frozen=True)
class Network:
    """The sizes of what is trained, and how the codebook learns.

    Args:
        num_codes: k.
        code_width: Numbers of a code's vector.
        commitment: Weight of the distance of tokens to their codes in the loss.
        decay: Of the codes' moving averages, each step.
        revive_below: A code is dead below this share of the mean count, and is put elsewhere.
        decoder_width, decoder_layers, decoder_heads: Of the text decoder.
        length: Of a caption in tokens, begin and end included; longer ones are cut.
    """

    num_codes: int
    code_width: int
    commitment: float
    decay: float
    revive_below: float
    decoder_width: int
    decoder_layers: int
    decoder_heads: int
    length: int

    def __post_init__(self) -> None:
        for name in ("code_width", "decoder_width", "decoder_layers", "decoder_heads"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        most = 2**16
        require(2 <= self.num_codes <= most, "num_codes", self.num_codes, f"from 2 to {most:,}")
        require(self.length >= 3, "length", self.length, "at least 3: begin, a word, end")
        require(self.commitment >= 0, "commitment", self.commitment, "0 or more")
        require(0 <= self.decay < 1, "decay", self.decay, "from 0 to below 1")
        require(0 <= self.revive_below < 1, "revive_below", self.revive_below, "from 0 to below 1")
        heads, width = self.decoder_heads, self.decoder_width
        require(width % heads == 0, "decoder_width", width, f"a multiple of decoder_heads={heads}")
