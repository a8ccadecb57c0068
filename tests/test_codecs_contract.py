"""Every codec that is installed, through the contract."""

from cbir_faiss.codecs.raw import Raw
from cbir_faiss.testing import CodecContract


class TestRaw(CodecContract):
    plugin = Raw
