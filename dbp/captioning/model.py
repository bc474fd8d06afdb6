"""TL;DR's network: tokens of a frozen image network -> codes of a codebook -> a caption.

The caption's loss alone shapes the codes, so that a code stands for what captions tell apart. Nobody imports
this file before torch is needed.

Source: Wang et al. 2023 (TL;DR, arXiv 2305.20087), section 3; van den Oord et al. 2017 (VQ-VAE), appendix A.1 for
    the moving averages. Departures: codes follow moving averages instead of a loss of their own, and begin as
    tokens of the first batch instead of embedded keywords.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from open_clip.transformer import MultimodalTransformer
from torch import Tensor, nn
from torch.nn import functional

from dbp.captioning.network import Network
from dbp.captioning.vocabulary import BEGIN, END, PAD

SMOOTHING = 1e-5  # of the counts that divide, so that an unused code divides by no nought

# Step 0.., probabilities over the vocabulary -> the next word of each caption.
Choose = Callable[[int, Float[Tensor, "b v"]], Int[Tensor, " b"]]


class Coded(NamedTuple):
    """Tokens after the codebook."""

    vectors: Float[Tensor, "b t d"]  # the codes' vectors; their gradient is the tokens'
    codes: Int[Tensor, "b t"]
    commitment: Float[Tensor, ""]


class Codebook(nn.Module):
    """k vectors; a token becomes the nearest one. They move towards the tokens that they stand for."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        k, d = network.num_codes, network.code_width
        self.network = network
        self.register_buffer("vectors", torch.zeros(k, d))
        self.register_buffer("sums", torch.zeros(k, d))
        self.register_buffer("usage", torch.zeros(k))
        self.register_buffer("has_begun", torch.tensor(False))
        self.vectors: Tensor
        self.sums: Tensor
        self.usage: Tensor
        self.has_begun: Tensor

    def nearest(self, tokens: Float[Tensor, "*m d"]) -> Int[Tensor, "*m"]:
        """The code with the smallest distance; of equal ones the lower number."""
        # |token|^2 is the same for all codes.
        products = tokens.float() @ self.vectors.T
        return (self.vectors.square().sum(1) - 2 * products).argmin(-1)

    def forward(self, tokens: Float[Tensor, "b t d"]) -> Coded:
        tokens = tokens.float()
        codes = self.nearest(tokens.detach())
        found = self.vectors[codes]
        commitment = functional.mse_loss(tokens, found)
        # Straight through: forward the code, backward as if the token had passed.
        return Coded(tokens + (found - tokens).detach(), codes, commitment)

    @torch.no_grad()
    def begin(self, tokens: Float[Tensor, "b t d"], generator: torch.Generator) -> None:
        """Take random tokens of a batch as the first codes."""
        if bool(self.has_begun):
            return
        flat = tokens.detach().float().flatten(0, 1)
        order = torch.randperm(len(flat), generator=generator)
        self.vectors.copy_(flat[order[torch.arange(len(self.vectors)) % len(order)]])
        self.usage.fill_(len(flat) / len(self.vectors))
        self.sums.copy_(self.vectors * self.usage[:, None])
        self.has_begun.fill_(True)

    @torch.no_grad()
    def update(
        self, tokens: Float[Tensor, "b t d"], codes: Int[Tensor, "b t"], generator: torch.Generator
    ) -> Int[Tensor, ""]:
        """Move the codes to the moving averages of their tokens; revive the dead ones, and count these.

        A code is dead when its moving count falls below `revive_below` of the mean count. It becomes a random
        token of the batch, and has the mean count to begin with.
        """
        flat, decay = tokens.detach().float().flatten(0, 1), self.network.decay
        # A product and not a scatter: its order of adding up is fixed on a GPU, too.
        member = functional.one_hot(codes.flatten(), len(self.vectors)).to(flat.dtype)
        self.usage.mul_(decay).add_(member.sum(0), alpha=1 - decay)
        self.sums.mul_(decay).add_(member.T @ flat, alpha=1 - decay)
        total = self.usage.sum()
        smoothed = (self.usage + SMOOTHING) / (total + len(self.usage) * SMOOTHING) * total
        self.vectors.copy_(self.sums / smoothed[:, None])
        mean = total / len(self.usage)
        is_dead = self.usage < self.network.revive_below * mean
        order = torch.randperm(len(flat), generator=generator).to(flat.device)
        fresh = flat[order[torch.arange(len(self.usage), device=flat.device) % len(order)]]
        self.vectors.copy_(torch.where(is_dead[:, None], fresh, self.vectors))
        self.usage.copy_(torch.where(is_dead, mean, self.usage))
        self.sums.copy_(torch.where(is_dead[:, None], fresh * mean, self.sums))
        return is_dead.sum()


class Captioning(nn.Module):
    """From tokens of the frozen network to codes, and from codes to words."""

    def __init__(self, network: Network, token_width: int, num_tokens: int, vocabulary_size: int) -> None:
        """Make a network with random weights."""
        super().__init__()
        width, length = network.decoder_width, network.length - 1
        self.project = nn.Sequential(nn.LayerNorm(token_width), nn.Linear(token_width, network.code_width))
        self.codebook = Codebook(network)
        self.remember = nn.Linear(network.code_width, width)
        self.places = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
        self.words = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.01)
        self.decoder = MultimodalTransformer(
            width, network.decoder_layers, network.decoder_heads, length, output_dim=vocabulary_size
        )
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.decoder.text_projection, std=width**-0.5)

    def memory(self, vectors: Float[Tensor, "b t d"]) -> Float[Tensor, "b t w"]:
        """What the decoder looks at: the codes' vectors, each with its place in the picture."""
        return self.remember(vectors) + self.places

    def logits(self, memory: Float[Tensor, "b t w"], words: Int[Tensor, "b l"]) -> Float[Tensor, "b l v"]:
        """The next word after each word."""
        return self.decoder(memory, self.words(words) + self.positions[: words.shape[1]])

    def forward(
        self, tokens: Float[Tensor, "b t d"], captions: Int[Tensor, "b l"]
    ) -> tuple[Float[Tensor, ""], Coded, Float[Tensor, "b t c"]]:
        """The mean loss of a word, the codes, and the tokens that they stand for."""
        projected = self.project(tokens)
        coded = self.codebook(projected)
        logits = self.logits(self.memory(coded.vectors), captions[:, :-1])
        loss = functional.cross_entropy(logits.float().flatten(0, 1), captions[:, 1:].flatten(), ignore_index=PAD)
        return loss, coded, projected

    @torch.no_grad()
    def codes(self, tokens: Float[Tensor, "b t d"]) -> Int[Tensor, "b t"]:
        """The codes of pictures."""
        return self.codebook.nearest(self.project(tokens))

    @torch.no_grad()
    def write(self, codes: Int[Tensor, "b t"], choose: Choose) -> Int[Tensor, "b l"]:
        """Captions, word by word, each until its end or the longest caption of training."""
        told = Told(self.decoder, self.memory(self.codebook.vectors[codes]))
        words = torch.full((len(codes), 1), BEGIN, device=codes.device)
        is_over = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
        for step in range(len(self.positions)):
            logits = told.next(self.words(words[:, -1:]) + self.positions[step]).float()
            logits[:, [PAD, BEGIN]] = -torch.inf
            chosen = choose(step, logits.softmax(-1))
            chosen = torch.where(is_over, torch.full_like(chosen, PAD), chosen)
            words = torch.cat([words, chosen[:, None]], 1)
            is_over |= chosen == END
            if bool(is_over.all()):
                break
        return words[:, 1:]


class Told:
    """The decoder word by word: keys and values of earlier words are kept, so that each word is seen once."""

    def __init__(self, decoder: MultimodalTransformer, memory: Float[Tensor, "b t w"]) -> None:
        self.decoder = decoder
        self.past: list[tuple[Tensor, Tensor] | None] = [None for _ in decoder.resblocks]
        self.seen: list[tuple[Tensor, Tensor]] = []  # keys and values of the picture, of each layer
        blocks: Any = decoder.cross_attn
        for block in blocks:
            _, keys, values = _projected(block.attn, block.ln_1_kv(memory))
            self.seen.append((keys, values))

    def next(self, word: Float[Tensor, "b 1 w"]) -> Float[Tensor, "b v"]:
        """What comes after one more word."""
        layers: Any = zip(self.decoder.resblocks, self.decoder.cross_attn, strict=True)
        for layer, (own, cross) in enumerate(layers):
            query, keys, values = _projected(own.attn, own.ln_1(word))
            if (past := self.past[layer]) is not None:
                keys, values = (torch.cat(both, 2) for both in zip(past, (keys, values), strict=True))
            self.past[layer] = keys, values
            word = _attended(own, word, query, keys, values)
            query, _, _ = _projected(cross.attn, cross.ln_1(word))
            word = _attended(cross, word, query, *self.seen[layer])
        return (self.decoder.ln_final(word) @ self.decoder.text_projection)[:, 0]


def _projected(attention: nn.MultiheadAttention, x: Float[Tensor, "b l w"]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of each head, `Float[b h l w/h]`."""
    made = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    parts = made.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]


def _attended(block: Any, x: Tensor, query: Tensor, keys: Tensor, values: Tensor) -> Float[Tensor, "b 1 w"]:
    """A block of open_clip's decoder on one word, its keys and values given."""
    found = functional.scaled_dot_product_attention(query, keys, values)
    x = x + block.ls_1(block.attn.out_proj(found.transpose(1, 2).flatten(2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def take_likeliest(step: int, probabilities: Float[Tensor, "b v"]) -> Int[Tensor, " b"]:
    """Greedy: always the likeliest word."""
    return probabilities.argmax(-1)
