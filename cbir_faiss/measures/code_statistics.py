"""What can be said of binary codes without labels: do their bits carry information, and do buckets fill evenly?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.checks import check_codes
from cbir_faiss.errors import DimensionMismatch, InputError

_ROWS = 1 << 12  # unpacked to floats together


def code_health(
    codes: NDArray[np.uint8], bits: int, *, sample: int = 20_000, prefix: int = 16, seed: int = 0
) -> dict[str, Any]:
    """Figures on packed ``codes`` ``(n, ⌈bits / 8⌉)``, from at most ``sample`` of them drawn at random; JSON-able.

    Bits:
        ``ones_mean``, ``ones_min``, ``ones_max``: share of ones, over all and of the least and most set bit; best 0.5.
        ``constant_bits``: bits that are the same in every code.
        ``correlation_mean``: mean absolute correlation of two bits that vary; 0 is best, and independent bits show
        about 0.8 / √sample.
        ``effective_bits``: how many uncorrelated bits vary as these do together, b² / (b + Σ corr²) over the pairs of
        different ones of the b bits that vary (the participation ratio of the correlation matrix's eigenvalues). In a
        sample of n even independent bits have a squared correlation of 1 / (n - 1), which is taken off:
        1 - (1 - corr²)(n - 1) / (n - 2) is 0 for them in expectation, and 1 for equal bits.

    Buckets, of whole codes and, under ``prefix``, of the first ``prefix`` bits, as a hash table would use:
        ``distinct``, ``distinct_share``: buckets in use, and per code.
        ``largest_share``: share of the codes in the fullest bucket.
        ``top1_share``: share in the fullest hundredth of the buckets in use (at least one).
        ``gini``: inequality of the buckets in use, 0 where all hold equally many.
        ``entropy_bits``: entropy of the bucket of a random code; at most log2 of the sample.

    Raises:
        InputError: not packed codes, none, or ``sample``, ``prefix`` or ``bits`` below 1.
        DimensionMismatch: codes of another width than ``bits`` take.
    """
    if min(bits, sample, prefix) < 1:
        raise InputError(f"bits, sample and prefix must be at least 1, got {bits}, {sample} and {prefix}")
    check_codes(codes, "code health", codes.shape[-1] * 8)
    if codes.shape[1] != -(-bits // 8):
        raise DimensionMismatch(f"codes of {codes.shape[1]} bytes cannot be of {bits} bits")
    n = len(codes)
    if n == 0:
        raise InputError("code health: there are no codes")
    if n > sample:
        rows = np.random.default_rng(seed).choice(n, sample, replace=False)
        codes = codes[np.sort(rows)]
    prefix = min(prefix, bits)
    head = np.unpackbits(codes[:, : -(-prefix // 8)], axis=1, count=prefix)
    return {
        "bits": bits,
        "items": n,
        "sample": len(codes),
        **_bits(codes, bits),
        **_buckets(codes),
        "prefix": {"bits": prefix, **_buckets(np.packbits(head, axis=1))},
    }


def _bits(codes: NDArray[np.uint8], bits: int) -> dict[str, Any]:
    n = len(codes)
    together = np.zeros((bits, bits))
    for start in range(0, n, _ROWS):
        # float32 counts these exactly; a block is far below 2^24 rows.
        part = np.unpackbits(codes[start : start + _ROWS], axis=1, count=bits).astype(np.float32)
        together += part.T @ part
    ones = together.diagonal() / n
    varying = (ones > 0) & (ones < 1)
    p = ones[varying]
    deviation = np.sqrt(p * (1 - p))
    correlation = (together[np.ix_(varying, varying)] / n - np.outer(p, p)) / np.outer(deviation, deviation)
    count = len(p)
    pairs = count * (count - 1)
    return {
        "ones_mean": float(ones.mean()),
        "ones_min": float(ones.min()),
        "ones_max": float(ones.max()),
        "constant_bits": bits - count,
        "correlation_mean": float((np.abs(correlation).sum() - count) / pairs) if pairs else 0.0,
        "effective_bits": _effective(correlation, n),
    }


def _effective(correlation: NDArray[np.float64], n: int) -> float:
    """The participation ratio of the bits whose ``correlation`` ``(b, b)`` was seen in n codes; at most b."""
    count = len(correlation)
    if count == 0:
        return 0.0
    pairs = count * (count - 1)
    squares = float(np.square(correlation).sum()) - count
    # Of two codes or fewer nothing is known but that all bits vary together.
    unbiased = pairs - (pairs - squares) * (n - 1) / max(1, n - 2)
    return count**2 / (count + max(0.0, unbiased))


def _buckets(codes: NDArray[np.uint8]) -> dict[str, Any]:
    sizes = np.sort(np.unique(codes, axis=0, return_counts=True)[1])
    n, buckets = len(codes), len(sizes)
    share = sizes / n
    # Gini of ascending x_1..x_b: (2 Σ i x_i) / (b Σ x) - (b + 1) / b.
    gini = 2 * (np.arange(1, buckets + 1) * share).sum() / buckets - (buckets + 1) / buckets
    return {
        "distinct": buckets,
        "distinct_share": buckets / n,
        "largest_share": float(share[-1]),
        "top1_share": float(share[-max(1, buckets // 100) :].sum()),
        "gini": float(max(0.0, gini)),
        "entropy_bits": float(max(0.0, -(share * np.log2(share)).sum())),
    }
