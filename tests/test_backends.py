"""Every FAISS backend through the contract, and what is particular to each."""

from collections.abc import Iterator
from importlib.util import find_spec

import faiss
import numpy as np
import pytest

from cbir_faiss.backends.faiss.binary_flat import FaissBinaryFlat
from cbir_faiss.backends.faiss.binary_hnsw import FaissBinaryHNSW
from cbir_faiss.backends.faiss.binary_ivf import FaissBinaryIVF
from cbir_faiss.backends.faiss.binary_multihash import FaissBinaryMultiHash
from cbir_faiss.backends.faiss.eden import FaissEden
from cbir_faiss.backends.faiss.flat import FaissFlat
from cbir_faiss.backends.faiss.hnsw import FaissHNSW
from cbir_faiss.backends.faiss.index import FaissIndex
from cbir_faiss.backends.faiss.ivf import FaissIVF
from cbir_faiss.backends.faiss.lsh import FaissLSH
from cbir_faiss.backends.faiss.pq import FaissPQ
from cbir_faiss.backends.faiss.rabitq import FaissRaBitQ
from cbir_faiss.backends.rabitq import RaBitQ
from cbir_faiss.backends.rabitq_hnsw import RaBitQHNSW
from cbir_faiss.testing import BackendContract


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On data this small FAISS's threads would only wait for each other."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


class TestFaissFlat(BackendContract):
    plugin = FaissFlat


class TestFaissBinaryFlat(BackendContract):
    plugin = FaissBinaryFlat


class TestFaissLSH(BackendContract):
    plugin = FaissLSH
    options = {"bits": 64}


class TestFaissLSHWithThresholds(BackendContract):
    plugin = FaissLSH
    options = {"bits": 16, "rotate": False, "thresholds": True}


class TestFactoryFlat(BackendContract):
    plugin = FaissIndex
    options = {"factory": "Flat"}
    cases = [("float", "l2"), ("float", "ip"), ("float", "cosine")]


class TestFactoryIVF(BackendContract):
    plugin = FaissIndex
    options = {"factory": "IVF4,Flat"}
    cases = [("float", "l2"), ("float", "cosine")]
    exhaustive = {"nprobe": 4}


class TestFactoryHNSW(BackendContract):
    plugin = FaissIndex
    options = {"factory": "HNSW8"}
    cases = [("float", "l2")]
    exhaustive = {"ef": 200}


class TestFactoryScalar(BackendContract):
    plugin = FaissIndex
    options = {"factory": "SQfp16"}
    cases = [("float", "l2")]
    tolerance = 0.01


class TestFactoryProduct(BackendContract):
    plugin = FaissIndex
    options = {"factory": "PQ8x4np"}
    cases = [("float", "l2")]
    tolerance = np.inf
    recall = 0.4


class TestFactoryRotatedRaBitQ(BackendContract):
    plugin = FaissIndex
    options = {"factory": "RR16,IVF4,RaBitQ"}
    cases = [("float", "l2")]
    exhaustive = {"nprobe": 4}
    tolerance = np.inf
    recall = 0.5


class TestFactoryITQHashing(BackendContract):
    plugin = FaissIndex
    options = {"factory": "ITQ16,LSH"}
    cases = [("float", "hamming")]


class TestFactoryBinaryFlat(BackendContract):
    plugin = FaissIndex
    options = {"factory": "BFlat"}
    cases = [("binary", "hamming")]


class TestFactoryBinaryIVF(BackendContract):
    plugin = FaissIndex
    options = {"factory": "BIVF2"}
    cases = [("binary", "hamming")]
    exhaustive = {"nprobe": 2}


class TestFactoryBinaryHNSW(BackendContract):
    plugin = FaissIndex
    options = {"factory": "BHNSW8"}
    cases = [("binary", "hamming")]
    exhaustive = {"ef": 200}


class TestFaissIVF(BackendContract):
    plugin = FaissIVF
    options = {"nlist": 4}
    exhaustive = {"nprobe": 4}


class TestFaissBinaryIVF(BackendContract):
    plugin = FaissBinaryIVF
    exhaustive = {"nprobe": 1000}


class TestFaissHNSW(BackendContract):
    plugin = FaissHNSW
    options = {"m": 8}
    exhaustive = {"ef": 200}


class TestFaissBinaryHNSW(BackendContract):
    plugin = FaissBinaryHNSW
    options = {"m": 8}
    exhaustive = {"ef": 200}


class TestFaissBinaryMultiHash(BackendContract):
    plugin = FaissBinaryMultiHash
    options = {"tables": 2, "key_bits": 4}
    exhaustive = {"nflip": 4}


class TestFaissRaBitQ(BackendContract):
    plugin = FaissRaBitQ
    options = {"nlist": 2, "nb_bits": 4}
    exhaustive = {"nprobe": 2}
    tolerance = np.inf
    recall = 0.8


class TestFaissRaBitQOneBit(BackendContract):
    plugin = FaissRaBitQ
    cases = [("float", "l2")]
    tolerance = np.inf
    recall = 0.15


class TestFaissPQ(BackendContract):
    plugin = FaissPQ
    options = {"bits": 32}
    tolerance = np.inf
    recall = 0.4


class TestFaissRaBitQFastScan(BackendContract):
    plugin = FaissRaBitQ
    options = {"nlist": 2, "bits": 4, "fast_scan": True}
    cases = [("float", "l2"), ("float", "cosine")]
    exhaustive = {"nprobe": 2}
    tolerance = np.inf
    recall = 0.8


class TestFaissRaBitQFlat(BackendContract):
    plugin = FaissRaBitQ
    options = {"nlist": 0, "bits": 4}
    cases = [("float", "l2"), ("float", "ip")]
    tolerance = np.inf
    recall = 0.8


class TestFaissRaBitQFlatWithoutFastScan(BackendContract):
    plugin = FaissRaBitQ
    options = {"nlist": 0, "bits": 4, "fast_scan": False}
    cases = [("float", "l2")]
    tolerance = np.inf
    recall = 0.8


class TestFaissEden(BackendContract):
    plugin = FaissEden
    options = {"nlist": 2, "bits": 6}
    exhaustive = {"nprobe": 2}
    tolerance = np.inf
    recall = 0.8


class TestFaissEdenFlat(BackendContract):
    plugin = FaissEden
    options = {"nlist": 0, "bits": 6}
    cases = [("float", "l2")]
    tolerance = np.inf
    recall = 0.8


class TestFaissHNSWOverScalars(BackendContract):
    plugin = FaissHNSW
    options = {"m": 8, "storage": "sq8"}
    exhaustive = {"ef": 200}
    tolerance = np.inf
    recall = 0.8


class TestFaissHNSWOverRaBitQ(BackendContract):
    plugin = FaissHNSW
    options = {"m": 8, "storage": "rabitq4"}
    cases = [("float", "l2")]
    exhaustive = {"ef": 200}
    tolerance = np.inf
    recall = 0.8


@pytest.mark.skipif(find_spec("rabitqlib") is None, reason="needs rabitqlib: Python 3.11 or newer")
class TestRaBitQ(BackendContract):
    plugin = RaBitQ
    options = {"nlist": 2, "bits": 5}
    exhaustive = {"nprobe": 2}
    tolerance = np.inf
    recall = 0.8


@pytest.mark.skipif(find_spec("rabitqlib") is None, reason="needs rabitqlib: Python 3.11 or newer")
class TestRaBitQHNSW(BackendContract):
    plugin = RaBitQHNSW
    options = {"m": 8, "bits": 7}
    exhaustive = {"ef": 200}
    tolerance = np.inf
    recall = 0.8
