"""Image embeddings, raw or as binary codes, in FAISS or a vector database."""
