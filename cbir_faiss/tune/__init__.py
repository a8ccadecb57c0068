"""From what is needed to the index that gives it, and what an index is, or will be, worth."""
