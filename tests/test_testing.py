"""The guard of the contract kit: a contract test cannot be lost without a reason."""

import pytest

from cbir_faiss.codecs.raw import Raw
from cbir_faiss.testing import CodecContract


def test_an_overridden_contract_test_is_refused():
    with pytest.raises(TypeError, match="test_not_fitted"):

        class Overrides(CodecContract):
            plugin = Raw

            def test_not_fitted(self) -> None:
                """Looks the other way."""


def test_a_removed_contract_test_is_refused():
    with pytest.raises(TypeError, match="test_saved_state"):

        class Removes(CodecContract):
            plugin = Raw
            test_saved_state = None


def test_an_override_with_a_reason_is_accepted():
    class Excused(CodecContract):
        plugin = Raw

        @pytest.mark.xfail(reason="the engine forgets")
        def test_saved_state(self) -> None:
            """Known to fail."""

    assert Excused.plugin is Raw


def test_a_mixin_cannot_hide_a_contract_test():
    class Mixin:
        def test_float64_is_float32(self) -> None:
            """Passes always."""

    with pytest.raises(TypeError, match="test_float64_is_float32"):

        class Hides(Mixin, CodecContract):
            plugin = Raw
