"""Keyed exponential clocks: random draws by weight whose outcome depends on no processor, order or thread.

A row with weight exp(s) and an exponential number E, keyed by (seed, round, uid), rings at E / exp(s). The rows
that ring first are a draw without replacement with probabilities softmax(s); a row's later rings make draws with
replacement. Clocks are compared as s - log E (Gumbel), larger is earlier.

The logarithm is our own, of additions, products and quotients alone, which IEEE 754 rounds in one way; a library's
last bit differs between processors, and would change which rows are drawn.
"""

import math
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float64, Int, Int64, UInt64

LN2 = 0.6931471805599453
CAPACITY = 4  # candidates of a round that are looked at exactly, in units of its draws
SLACK = 0.25  # how far below the last round's border the thresholds lie


@numba.njit(nogil=True, cache=True)
@no_type_check
def _log(x):  # type: ignore[no-untyped-def]
    """Natural logarithm of a number above 0: error below 1e-15 relative to max(1, |log x|)."""
    part, exponent = math.frexp(x)
    if part < 0.7071067811865476:
        part, exponent = part * 2.0, exponent - 1
    f = (part - 1.0) / (part + 1.0)  # log part = 2 atanh f, |f| < 0.172
    g = f * f
    total = 0.0
    for k in range(21, 0, -2):
        total = total * g + 1.0 / k
    return exponent * LN2 + 2.0 * f * total


@numba.njit(nogil=True, cache=True)
@no_type_check
def _scrambled(key, word):  # type: ignore[no-untyped-def]
    """A random 64-bit word of a row: `order.keyed_hash`, compiled for one row; `word` is the seed's product."""
    state = key ^ word
    for _ in range(2):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


@numba.njit(nogil=True, cache=True)
@no_type_check
def _exponential(bits):  # type: ignore[no-untyped-def]
    return -_log((np.float64(bits >> np.uint64(11)) + 0.5) * 2.0**-53)


@numba.njit(nogil=True, cache=True)
@no_type_check
def _ringing(keys, word, scores, least_bits, rows, clocks):  # type: ignore[no-untyped-def]
    """Rows whose random word is at least their threshold, with their clocks; their number, also above the room."""
    found = 0
    for i in range(keys.shape[0]):
        bits = _scrambled(keys[i], word)
        if bits >= least_bits[i]:
            if found < rows.shape[0]:
                rows[found] = i
                clocks[found] = scores[i] - _log(_exponential(bits))
            found += 1
    return found


@numba.njit(nogil=True, cache=True)
@no_type_check
def _rings(keys, words, scores, border, counts):  # type: ignore[no-untyped-def]
    """How often each row rings no later than a border, at most once for each word; the sum."""
    total = 0
    for i in range(keys.shape[0]):
        spent, rung = 0.0, 0
        while rung < words.shape[0]:
            spent += _exponential(_scrambled(keys[i], words[rung]))
            if scores[i] - _log(spent) < border:
                break
            rung += 1
        counts[i] = rung
        total += rung
    return total


class Rounds:
    """Draws without replacement, round after round, by scores that may fall in between.

    Only rows whose random word could make them ring in time get a logarithm; thresholds are kept with a margin and
    checked, so what is drawn is what comparing all clocks would draw.

    Args:
        keys: Of each row, its uid's hash.
        scores: Logarithms of the weights; `lower` changes them.
    """

    def __init__(self, keys: UInt64[np.ndarray, " n"], scores: Float64[np.ndarray, " n"], draws: int) -> None:
        self.keys, self.scores, self.draws = keys, scores, draws
        self.least_bits = np.zeros(len(keys), np.uint64)
        self.border = -np.inf

    def draw(self, word: np.uint64) -> Int64[np.ndarray, " b"]:
        """The rows of a round, ascending; a tie goes to the lower row."""
        room = min(len(self.keys), CAPACITY * self.draws + 1024)
        rows, clocks = np.empty(room, np.int64), np.empty(room)
        found = (
            _ringing(self.keys, word, self.scores, self.least_bits, rows, clocks) if self.border > -np.inf else -1
        )
        if self.draws <= found <= room:
            rows, clocks = rows[:found], clocks[:found]
        if not self.draws <= found <= room or self._last(clocks) < self.border + 1e-6:
            rows, clocks = np.empty(len(self.keys), np.int64), np.empty(len(self.keys))
            _ringing(self.keys, word, self.scores, np.zeros(len(self.keys), np.uint64), rows, clocks)
            self.border = self._last(clocks) - SLACK
            self.least_bits = self._bits(self.scores)
        last = self._last(clocks)
        drawn = rows[clocks > last]
        drawn = np.r_[drawn, np.sort(rows[clocks == last])[: self.draws - len(drawn)]]
        drawn.sort()
        return drawn

    def lower(self, rows: Int[np.ndarray, " b"], scores: Float64[np.ndarray, " b"]) -> None:
        """Give rows lower scores than they had."""
        self.scores[rows] = scores
        self.least_bits[rows] = self._bits(scores)

    def _last(self, clocks: np.ndarray) -> float:
        at = len(clocks) - self.draws
        return float(np.partition(clocks, at)[at])

    def _bits(self, scores: np.ndarray) -> np.ndarray:
        """Words below which a row cannot ring before the border; 1e-9 below, as `exp` is not exact."""
        with np.errstate(over="ignore", under="ignore"):
            chance = np.exp(-np.exp(np.minimum(scores - self.border, 700.0)))  # that the word is too small
        return np.maximum(chance * (1 - 1e-9) * 2.0**64 - 2.0**12, 0.0).astype(np.uint64)


def rings_before(
    keys: UInt64[np.ndarray, " n"], words: UInt64[np.ndarray, " c"], scores: Float64[np.ndarray, " n"], total: int
) -> Int64[np.ndarray, " n"]:
    """How often each row is among the first `total` rings, if it rings at most once for each word.

    As drawing `total` times with replacement, where a row that came up `c` times is out. Ties go to the lower row.
    """
    counts = np.empty(len(keys), np.int64)
    low, high = _order(-1e300), _order(1e300)  # at least `total` ring before the one, fewer before the other
    while high - low > 1:
        middle = (low + high) // 2
        if _rings(keys, words, scores, _float(middle), counts) >= total:
            low = middle
        else:
            high = middle
    inside = _rings(keys, words, scores, _float(high), counts)
    at_border = np.empty(len(keys), np.int64)
    _rings(keys, words, scores, _float(low), at_border)
    more = at_border - counts  # a row rings more than once at the border where its score dwarfs all clocks
    counts += np.clip(total - inside - (np.cumsum(more) - more), 0, more)
    assert counts.sum() == total, "the border lies between fewer and at least as many rings"
    return counts


def _order(value: float) -> int:
    """A whole number in the order of float64."""
    bits = int(np.float64(value).view(np.int64))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFFFFFFFFFF)


def _float(order: int) -> float:
    bits = order if order >= 0 else (-order) | -0x8000000000000000
    return float(np.int64(bits).view(np.float64))
