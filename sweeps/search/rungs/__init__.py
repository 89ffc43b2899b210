"""Rungs on which trials are scored until it is known who is stopped."""
