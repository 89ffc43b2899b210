"""A sweep's folder: what is in it, how it is written, where it lives."""
