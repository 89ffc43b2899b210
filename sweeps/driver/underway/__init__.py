"""A search while it runs: Ray Tune over the pool, and what listens to it."""
