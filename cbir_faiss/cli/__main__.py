"""``python -m cbir_faiss.cli`` is the command ``cbir``."""

from __future__ import annotations

from cbir_faiss.cli import main

if __name__ == "__main__":
    main()
