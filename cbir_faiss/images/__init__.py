"""Pictures: opening them, and preparing them for a network."""
