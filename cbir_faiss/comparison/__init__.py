"""Every combination of codec, backend and rescorer on one split, measured through the pipeline."""
