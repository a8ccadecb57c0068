"""The one way from an item to a code to a hit."""
