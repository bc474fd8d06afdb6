"""The inner loops over vectors, compiled by numba; they release the interpreter, so that threads share work.

Every stored vector is fp16 with |x| about 1, so each number is a multiple of 2^-24, each product of two a
multiple of 2^-48, and every partial sum of a dot product is below 2: float64 holds it without any rounding.
Centroids are rounded to the same grid. So the products here are exact, whatever the order of summing, the
block, the number of threads or the device, and so are the decisions that rest on them. The fp32 matrix
product before it only says which few candidates are worth an exact look.

`no_type_check` keeps the tests' type checker out: numba compiles the function itself, not a wrapper.
"""

from typing import no_type_check

import numba
import numpy as np

UNDECIDED = 1e-5  # candidates this near to the best in fp32 (its error is below 2e-6) are looked at exactly
# Distances are summed in whole units of 2^-30, so that the sum depends on neither order nor blocks.
UNITS = 2.0**30
GROUP = 64  # columns tested at once
FREE = {"nnan", "nsz", "reassoc", "contract", "arcp"}  # free summing order: nothing is rounded


@numba.njit(nogil=True, fastmath=FREE, cache=True)
@no_type_check
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(a.shape[0]):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@numba.njit(nogil=True, fastmath=FREE, cache=True)
@no_type_check
def _any_at_least(values, limit):  # type: ignore[no-untyped-def]
    count = 0
    for j in range(values.shape[0]):
        count += values[j] >= limit
    return count > 0


@numba.njit(nogil=True, fastmath=FREE, cache=True)
@no_type_check
def _any_scaled_at_least(values, scale, limit):  # type: ignore[no-untyped-def]
    count = 0
    for j in range(values.shape[0]):
        count += values[j] * scale[j] >= limit
    return count > 0


@numba.njit(nogil=True, cache=True)
@no_type_check
def nearest(products, top, vectors, centroids, inverse, label, cosine):  # type: ignore[no-untyped-def]
    """The nearest centroid of each vector of a block, decided exactly.

    Args:
        products: fp32 (b, k), vectors times centroids.
        top: fp32 (b,), the largest of each row.
        vectors: fp32 (b, d), stored fp16 values.
        centroids: fp32 (k, d), on the grid of 2^-24.
        inverse: float64 (k,), one over the centroids' lengths, which are 1 within 2e-6.
        label: int32 (b,), filled: the lowest number among equally near centroids.
        cosine: float64 (b,), filled: product over the centroid's length, not over the vector's.
    """
    num_rows, num_centroids = products.shape
    for i in range(num_rows):
        row = products[i]
        limit = top[i] - np.float32(UNDECIDED)
        best = -np.inf
        at = 0
        for start in range(0, num_centroids, GROUP):
            stop = min(start + GROUP, num_centroids)
            if not _any_at_least(row[start:stop], limit):
                continue
            for j in range(start, stop):
                if row[j] >= limit:
                    exact = _dot(vectors[i], centroids[j]) * inverse[j]
                    if exact > best:
                        best = exact
                        at = j
        label[i] = at
        cosine[i] = best


@numba.njit(nogil=True, cache=True)
@no_type_check
def improve(products, rows, columns, norms, norms_before, inverse32, first, best, partner, triangle):  # type: ignore[no-untyped-def]
    """Raise the running best similarity of a block of rows by a panel of earlier rows.

    Args:
        products: fp32 (b, c), rows times columns.
        rows, columns: fp32 (b, d) and (c, d), stored fp16 values.
        norms, norms_before, inverse32: float64 (b,) and (c,), fp32 (c,).
        first: Number of the panel's first row in the order.
        best, partner: float64 and int64 (b,), raised; of equal similarities the earlier row stays.
        triangle: Row i of the block comes after `triangle + i` columns of the panel.
    """
    num_rows, num_columns = products.shape
    for i in range(num_rows):
        row = products[i]
        stop = min(num_columns, triangle + i)
        scale = np.float32(norms[i])
        for start in range(0, stop, GROUP):
            end = min(start + GROUP, stop)
            limit = np.float32((best[i] - UNDECIDED) * scale)
            if not _any_scaled_at_least(row[start:end], inverse32[start:end], limit):
                continue
            for j in range(start, end):
                if row[j] * inverse32[j] >= limit:
                    exact = _dot(rows[i], columns[j]) / (norms[i] * norms_before[j])
                    exact = min(exact, 1.0)
                    if exact > best[i]:
                        best[i] = exact
                        partner[i] = first + j
                        limit = np.float32((exact - UNDECIDED) * scale)


@numba.njit(nogil=True, fastmath=FREE, cache=True)
@no_type_check
def add_to(sums, counts, vectors, label):  # type: ignore[no-untyped-def]
    """Add each vector to its cluster's sum; exact in float64 up to 2^29 rows."""
    for i in range(vectors.shape[0]):
        at = label[i]
        counts[at] += 1
        for j in range(vectors.shape[1]):
            sums[at, j] += np.float64(vectors[i, j])


@numba.njit(nogil=True, cache=True)
@no_type_check
def paired(a, b, product):  # type: ignore[no-untyped-def]
    """The exact product of each row of `a` with the same row of `b`."""
    for i in range(a.shape[0]):
        product[i] = _dot(a[i], b[i])


@numba.njit(nogil=True, cache=True)
@no_type_check
def keep_greedily(later, earlier, similarity, kept, value, twin):  # type: ignore[no-untyped-def]
    """Drop each later row of a pair whose earlier row is still kept.

    Args:
        later, earlier, similarity: (p,), in the order in which rows are decided.
        kept: bool over all rows, changed.
        value, twin: Over all rows, filled where a row goes: the most similar row that removes it.
    """
    for p in range(later.shape[0]):
        row = later[p]
        if kept[earlier[p]]:
            kept[row] = False
            if not value[row] >= similarity[p]:
                value[row] = similarity[p]
                twin[row] = earlier[p]


@numba.njit(nogil=True, cache=True)
@no_type_check
def keep_fairly(ends, others, alike, near, sums, kept, at, concept, value):  # type: ignore[no-untyped-def]
    """Take rows in turn; each that is left opens a group, of which the row nearest the concept of least sum stays.

    Args:
        ends, others, alike: Of row i the neighbours are others[ends[i - 1] : ends[i]], and how alike they are.
        near: int32 (m, c), cosines to concepts in whole units.
        sums: int64 (c,), raised by the cosines of the rows that stay.
        kept, at, concept, value: (m,), filled: whether a row stays; the row that stays in its group; the concept
            that decided; how alike it is to the row that opened the group, or that row to the one that stays.
    """
    m, num = near.shape
    at[:] = -1
    for i in range(m):
        if at[i] >= 0:
            continue
        least = 0
        for c in range(1, num):
            if sums[c] < sums[least]:
                least = c
        best = i
        start = ends[i - 1] if i > 0 else 0
        for p in range(start, ends[i]):
            j = others[p]
            if at[j] < 0 and (
                near[j, least] > near[best, least] or (near[j, least] == near[best, least] and j < best)
            ):
                best = j
        value[i] = np.float32(np.nan)
        for p in range(start, ends[i]):
            j = others[p]
            if j == best:
                value[i] = alike[p]
            if at[j] < 0:
                kept[j], at[j], concept[j], value[j] = False, best, least, alike[p]
        kept[i], at[i], concept[i] = False, best, least
        kept[best] = True
        value[best] = np.float32(np.nan)
        for c in range(num):
            sums[c] += near[best, c]


@numba.njit(nogil=True, cache=True)
@no_type_check
def cluster_totals(cluster, distance, mask, sizes, sums):  # type: ignore[no-untyped-def]
    """Members of each cluster in a mask, and their distances in whole units of 1 / UNITS."""
    for i in range(cluster.shape[0]):
        own = cluster[i]
        if mask[i] and own >= 0:
            sizes[own] += 1
            sums[own] += np.int64(np.rint(np.float64(distance[i]) * UNITS))


@numba.njit(nogil=True, cache=True)
@no_type_check
def grouped(keys, cluster, mask, found):  # type: ignore[no-untyped-def]
    """The keys of clustered rows in a mask, each with its cluster's number above it."""
    at = 0
    for i in range(cluster.shape[0]):
        if mask[i] and cluster[i] >= 0:
            found[at] = (np.uint64(cluster[i]) << np.uint64(32)) | np.uint64(keys[i])
            at += 1


@numba.njit(nogil=True, cache=True)
@no_type_check
def take_to_border(keys, cluster, mask, border, has_quota, at_border, taken):  # type: ignore[no-untyped-def]
    """Take each cluster's keys below its border, and at the border the first `at_border` rows."""
    for i in range(cluster.shape[0]):
        own = cluster[i]
        if not mask[i] or own < 0 or not has_quota[own]:
            continue
        if keys[i] < border[own]:
            taken[i] = True
        elif keys[i] == border[own] and at_border[own] > 0:
            at_border[own] -= 1
            taken[i] = True
