"""Collections on disk: immutable files, listed with size and SHA-256 by a manifest that CURRENT names."""
