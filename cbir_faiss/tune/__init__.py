"""What an index is worth and what it will take: on the user's own data, before it is built or while it runs."""
