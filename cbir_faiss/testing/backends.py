"""The contract of a backend. Every answer is compared with NumPy's, and what is declared is tested as declared."""

from __future__ import annotations

from cbir_faiss.testing._backends import Case
from cbir_faiss.testing._form import Form
from cbir_faiss.testing._lasting import Lasting
from cbir_faiss.testing._searching import Searching
from cbir_faiss.testing._sharing import Sharing
from cbir_faiss.testing._storing import Storing

__all__ = ["BackendContract", "Case"]


class BackendContract(Form, Searching, Storing, Lasting, Sharing):
    """Subclass it with ``plugin`` (and ``options``). A plugin with a ``path`` option gets a fresh folder for each test.

    An approximate backend names in ``exhaustive`` the search options under which it looks at everything; a lossy one
    (PQ, RaBitQ, …) lowers ``recall`` and raises ``tolerance``.
    """
