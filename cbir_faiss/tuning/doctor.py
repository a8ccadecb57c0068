"""Will binary codes work for these vectors? What can be seen of a sample of them, and what codes of it find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss._lib.sampling import sample_rows
from cbir_faiss.base import Backend, Codec
from cbir_faiss.base.checks import check_floats
from cbir_faiss.base.registry import make
from cbir_faiss.config import Config, load_config
from cbir_faiss.errors import CbirError, InputError
from cbir_faiss.measures.code_statistics import code_health
from cbir_faiss.measures.intervals import mean_interval
from cbir_faiss.measures.neighbours import exact_neighbours, true_distances
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.pipeline.extraction import Progress, extract
from cbir_faiss.pipeline.fill import fill
from cbir_faiss.pipeline.fit import Sample, with_direction
from cbir_faiss.pipeline.search import without
from cbir_faiss.storage.manifest import CURRENT
from cbir_faiss.storage.store import Store
from cbir_faiss.tuning.exact import DEFAULT_METRIC, uncoded
from cbir_faiss.tuning.predict import ERROR, Interval, Seen, off_by
from cbir_faiss.types import Floats, Hits, Ids, Metric

SAMPLE, QUERIES, K, CANDIDATES = 20_000, 500, 10, 100
BESIDE = 2_000
"""Vectors of the sample whose neighbours among themselves are counted; in more of them hubs would be larger."""
ENOUGH = 0.95
"""Recall from which on codes are said to work."""
_NEAR, _DEEP = 100, 1_000  # neighbours and hits that a prediction for more items goes by
_SURE = 5.0  # times as many items, for which a prediction is off by what it is known to be at the least
_FEW = 200  # vectors, of which nothing can be told
_WIDEST = 512  # bits that are learnt or rotated here: of more, learning takes minutes
_ONE_SIGN, _ALIKE = 0.5, 0.9
_NEARLY = 0.03  # of recall, within which the simpler code is as good


@dataclass(frozen=True)
class Prediction:
    """What codes of one kind find of the 10 nearest of all items: by Hamming distance alone (``candidates`` 0), or with
    so many of the first ranked again by the vectors. recall None: they cannot be made, for the ``reason``."""

    code: str
    bits: int
    candidates: int
    recall: float | None
    ci95: tuple[float, float] | None
    reason: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What a sample of vectors is like.

    items: how many there are; sample: how many of them were looked at. one_signed: share of the dimensions in which no
    value is above 0, or none below. effective_bits: how many independent bits vary as the signs do together.
    intrinsic_dimension: the dimension in which distances grow as they do here (Levina and Bickel 2004). hubness:
    skewness of how often a vector is among the 10 nearest of others, among 2,000 of them; near 0 where all are about
    equally often. duplicates: share of the sample that another vector of the sample equals. norm_mean, norm_variation:
    of the lengths; deviation over mean. zeros: vectors of zeros. predictions: see there. advice: what to do.
    """

    items: int
    sample: int
    dim: int
    one_signed: float
    effective_bits: float
    intrinsic_dimension: float | None
    hubness: float
    duplicates: float
    norm_mean: float
    norm_variation: float
    zeros: int
    predictions: tuple[Prediction, ...]
    advice: str

    def as_dict(self) -> dict[str, Any]:
        """As ``cbir doctor --json`` prints it."""
        return asdict(self)


def doctor(
    of: Config | str | Path | NDArray[Any],
    *,
    cache: Path | None = None,
    metric: Metric | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagnosis:
    """Look at vectors ``(n, dim)``, those of a collection (its folder), or those that a config's extractor makes.

    metric: by what they are compared; None: as the collection does, else cosine.

    Raises:
        InputError: too few vectors, or NaN among them; a collection that keeps no embeddings, or keeps them turned, and
            whose source is not there.
    """
    x, items, by = _vectors(of, cache, seed, progress)
    x = check_floats(x, "doctor")
    if len(x) < _FEW:
        raise InputError(f"{len(x)} vectors are too few to tell anything of: at least {_FEW} are needed")
    metric = metric or by
    zeros = ~with_direction(x)
    usable = np.ascontiguousarray(x[~zeros]) if metric == "cosine" else x
    if len(usable) < _FEW:
        raise InputError(f"only {len(usable)} of {len(x)} vectors are not zero: nothing can be told of them")
    with threads.phase("fit"):
        return _Examination(usable, metric, seed, items / len(x)).diagnosis(items, x, int(zeros.sum()))


def _vectors(
    of: Config | str | Path | NDArray[Any], cache: Path | None, seed: int, progress: Progress | None
) -> tuple[NDArray[Any], int, Metric]:
    if isinstance(of, np.ndarray):
        if of.ndim != 2:
            raise InputError(f"doctor takes vectors (n, dim), got {of.dtype} {of.shape}")
        return of[sample_rows(len(of), SAMPLE, seed)], len(of), DEFAULT_METRIC
    if not isinstance(of, Config) and Path(of, CURRENT).exists():
        return _of_collection(Path(of), seed)
    config = of if isinstance(of, Config) else load_config(of)
    source, extractor = config.source.make(), config.extractors[0].make()
    items = len(source.items())
    rows = np.arange(items)[sample_rows(items, SAMPLE, seed)]
    found = extract(source, extractor, cache=cache or default_cache(), progress=progress, rows=rows)
    if not len(found):
        reason = f"; {found.failed[0].path}: {found.failed[0].reason}" if found.failed else ""
        raise InputError(f"not one item could be used{reason}")
    metric = config.metrics.truth.metric or DEFAULT_METRIC
    return found.block(slice(0, len(found)), [found.names[0]])[found.names[0]], items, metric


def _of_collection(folder: Path, seed: int) -> tuple[NDArray[Any], int, Metric]:
    import tempfile

    with Store.open(folder) as store, tempfile.TemporaryDirectory(prefix="cbir-") as scratch:
        exact = uncoded(store, Path(scratch)) if len(store) else None
        if exact is None:
            raise InputError(
                f"{folder} does not keep the vectors as they were: give the vectors themselves (--vectors X.npy)"
            )
        return np.array(exact.vectors[sample_rows(len(store), SAMPLE, seed)]), len(store), exact.metric


# ------------------------------------------------------------------------------------------------------------ looking


class _Examination:
    """A sample ``x`` of which each stands for ``growth`` items."""

    def __init__(self, x: Floats, metric: Metric, seed: int, growth: float) -> None:
        self._x, self._metric, self._growth = x, metric, growth
        rng = np.random.default_rng(seed)
        self._rows = np.sort(rng.choice(len(x), min(QUERIES, len(x)), replace=False))
        self._beside = np.sort(rng.choice(len(x), min(BESIDE, len(x)), replace=False))
        self._near, self._numbers = nearest(x, self._rows, _NEAR, metric), _numbers(x)

    def diagnosis(self, items: int, x: Floats, zeros: int) -> Diagnosis:
        signs = np.packbits(x > 0, axis=1)
        lengths = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
        one_signed = float(((x.min(axis=0) >= 0) | (x.max(axis=0) <= 0)).mean())
        equal = np.bincount(_numbers(x))
        duplicates = float(equal[equal > 1].sum() / len(x))
        predictions = tuple(self._predictions())
        return Diagnosis(
            items=items,
            sample=len(x),
            dim=x.shape[1],
            one_signed=one_signed,
            effective_bits=code_health(signs, x.shape[1])["effective_bits"],
            intrinsic_dimension=self._intrinsic_dimension(),
            hubness=self._hubness(),
            duplicates=duplicates,
            norm_mean=float(lengths.mean()),
            norm_variation=float(lengths.std() / lengths.mean()) if lengths.any() else 0.0,
            zeros=zeros,
            predictions=predictions,
            advice=_advice(one_signed, duplicates, predictions),
        )

    def _intrinsic_dimension(self) -> float | None:
        near = nearest(self._x, self._rows, K, "l2") if self._metric == "ip" else self._near  # products are no lengths
        return _intrinsic_dimension(near.distances[:, :K])

    def _hubness(self) -> float:
        """Of so many vectors among themselves: how often one of few that are asked for is found is chance."""
        some = np.ascontiguousarray(self._x[self._beside])
        found = nearest(some, np.arange(len(some)), K, self._metric).ids
        return _skewness(np.bincount(found[found >= 0], minlength=len(some)))

    def _predictions(self) -> Iterator[Prediction]:
        dim = self._x.shape[1]
        bits = max(8, min(_WIDEST, dim // 8 * 8))
        codes = {
            "sign": ("sign", {}),
            "rotated": ("lsh", {"bits": bits, "projection": "orthogonal"}),
            "itq": ("itq", {"bits": bits, "normalise": self._metric == "cosine"}),
        }
        for code, (name, options) in codes.items():
            try:
                yield from self._predicted(code, name, options)
            except CbirError as error:
                yield Prediction(code, dim if code == "sign" else bits, 0, None, None, str(error))

    def _predicted(self, code: str, name: str, options: dict[str, Any]) -> Iterator[Prediction]:
        """Ranked again by the vectors, whatever is among the candidates is found."""
        codec: Codec = Sample({"embedding": self._x}, [()] * len(self._x)).fit_codec(make("codecs", name, **options))
        backend: Backend = make("backends", "faiss-binary-flat")
        codes = codec.encode(self._x)
        fill(backend, [(np.arange(len(codes)), codes, None)], kind="binary", width=codec.width)
        try:
            hits = backend.search(codes[self._rows], min(_DEEP, len(codes) - 1) + 1)
        finally:
            backend.close()
        hits = without(hits, self._rows, hits.ids.shape[1] - 1)
        same = self._numbers
        seen = Seen.of(same[hits.ids], hits.distances, same[self._near.ids], self._near.distances)
        for candidates in (0, CANDIDATES):
            told = self._told(seen, max(candidates, K))
            yield Prediction(code, codec.bits or 0, candidates, told.value, (told.low, told.high))

    def _told(self, seen: Seen, depth: int) -> Interval:
        if self._growth > 1:
            off = off_by([ERROR], ERROR, [_SURE], self._growth)
            return seen.predicted(depth, K, self._growth, off)
        shares = (seen.places[:, :K] < depth).mean(axis=1)
        return Interval(float(shares.mean()), *mean_interval(shares, len(self._x)))


def nearest(x: Floats, rows: Ids, k: int, metric: Metric) -> Hits:
    """The ``k`` of ``x`` that are nearest to some of its ``rows``, these left out; fewer where there are no more."""
    count = min(k, len(x) - 1)
    found = exact_neighbours(x, x[rows], count + 1, metric)[0]
    distances = true_distances(x, x[rows], found, metric)
    return without(Hits(found, distances.astype(np.float32)), rows, count)


def _numbers(x: Floats) -> Ids:
    """int64 ``(n,)``: vectors that are equal have the same."""
    rows = np.ascontiguousarray(x)
    return np.unique(rows.view(np.dtype((np.void, rows.strides[0]))).ravel(), return_inverse=True)[1].reshape(-1)


def _intrinsic_dimension(distances: NDArray[Any]) -> float | None:
    """By the distances of the nearest ``(n, k)``, of squares or of halves of squares; None where they are all equal.

    The inverse of the mean of log(r_k / r_j), as MacKay and Ghahramani average it over the points.
    """
    some = distances[(distances > 0).all(axis=1)]
    if not len(some) or distances.shape[1] < 2:
        return None
    ratios = 0.5 * np.log(some[:, -1:] / some[:, :-1])  # of lengths, where the distances are squares
    mean = float(ratios.mean())
    return 1 / mean if mean > 0 else None


def _skewness(counts: NDArray[Any]) -> float:
    apart = counts - counts.mean()
    deviation = float(counts.std())
    return float((apart**3).mean() / deviation**3) if deviation else 0.0


# ------------------------------------------------------------------------------------------------------------- advice


def _advice(one_signed: float, duplicates: float, predictions: tuple[Prediction, ...]) -> str:
    if duplicates > _ALIKE:
        return f"{duplicates:.0%} of these vectors equal another: too few differ to tell anything of codes."
    known = {(one.code, bool(one.candidates)): one.recall for one in predictions if one.recall is not None}
    rescored = {code: value for (code, again), value in known.items() if again}
    if not rescored:
        return f"No codes can be made of these vectors: {predictions[0].reason}."
    best = max(rescored.values())
    simplest = next(code for code, value in rescored.items() if value >= min(ENOUGH, best) - _NEARLY)
    why = ""
    if simplest != "sign" and "sign" in rescored:
        cause = f", for {one_signed:.0%} of the dimensions have one sign" if one_signed >= _ONE_SIGN else ""
        why = f"An engine's own binary quantization fails on them (signs find {rescored['sign']:.2f}{cause}). "
    if best < ENOUGH - _NEARLY:
        return (
            f"{why}Bits lose too much here: with {CANDIDATES} candidates ranked again they find {best:.2f} of the "
            f"{K} nearest. Take more bits a dimension, more candidates, or floats: cbir tune finds which."
        )
    alone = known.get((simplest, False), 0.0)
    again = "" if alone >= ENOUGH else f" Rank {CANDIDATES} candidates again; without, it is {alone:.2f}."
    return f"{why}{_WHAT_TO_DO[simplest]} finds {rescored[simplest]:.2f} of the {K} nearest.{again}"


_WHAT_TO_DO = {
    "sign": "Binary works as it is: codec 'sign', or an engine's own binary quantization,",
    "rotated": "A rotation mends it: codec 'lsh' with projection 'orthogonal', or codec 'rotate' before an engine's "
    "own binary quantization,",
    "itq": "Learnt bits work: codec 'itq', or codec 'rotate' before an engine's own binary quantization,",
}
