"""The contracts, as test classes: subclass one, name your plugin, and pytest proves it right.

    from cbir_faiss.testing import BackendContract
    from my_package import MyBackend


    class TestMyBackend(BackendContract):
        plugin = MyBackend
        options = {"timeout": 5}

A contract test that is overridden or removed is an error, unless it is marked ``@pytest.mark.xfail(reason=…)``. Needs
pytest. The data is tiny and seeded, so a failure repeats.
"""

import pytest

# Strangers import these modules from the wheel; without this their failed asserts would show no values.
_ROOMS = ("_backends", "_form", "_lasting", "_searching", "_sharing", "_storing", "codecs", "extractors", "others")
pytest.register_assert_rewrite(*(f"{__name__}.{room}" for room in _ROOMS))

from cbir_faiss.testing.backends import BackendContract  # noqa: E402
from cbir_faiss.testing.codecs import CodecContract  # noqa: E402
from cbir_faiss.testing.extractors import ExtractorContract  # noqa: E402
from cbir_faiss.testing.others import RescorerContract, SourceContract  # noqa: E402

__all__ = ["BackendContract", "CodecContract", "ExtractorContract", "RescorerContract", "SourceContract"]
