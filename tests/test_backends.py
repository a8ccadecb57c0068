"""Every FAISS backend through the contract, and what is particular to each."""

from cbir_faiss.backends.faiss_binary_flat import FaissBinaryFlat
from cbir_faiss.backends.faiss_flat import FaissFlat
from cbir_faiss.backends.faiss_lsh import FaissLSH
from cbir_faiss.testing import BackendContract


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
