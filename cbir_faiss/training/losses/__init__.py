"""What a network can be trained for, one loss a file."""
