"""The index types of FAISS, one a file."""
