"""What people read of a comparison: names, recommendation, charts, one page."""
