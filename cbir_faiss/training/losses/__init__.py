"""What a network can be trained for, one loss a file; its torch module stands in the file of its name with a "_"."""
