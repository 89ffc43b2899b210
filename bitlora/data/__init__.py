"""From files, hub and docstrings to rows of tokens with what is learned marked."""
