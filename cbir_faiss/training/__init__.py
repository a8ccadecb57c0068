"""Training networks: what `cbir train CONFIG --out DIR` does.

config → data (pictures in memory, labels, a teacher's embeddings) → loop (batches, augmentation, losses, validation)
→ a folder with the best model, the run to be resumed and its curves.
"""
