"""What an index is worth and what it will take, and the index that meets a target: on the user's own data."""
