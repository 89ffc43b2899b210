"""The report of a sweep, made from what is on disk alone."""
