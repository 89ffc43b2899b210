"""A sweep's folder as it lies on disk, read into tables."""
