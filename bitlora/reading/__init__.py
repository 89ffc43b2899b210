"""From files, the hub and docstrings to rows as they were written, each with its place."""
