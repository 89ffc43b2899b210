"""The YAML spec of a sweep: read, checked, all that is wrong with it said at once."""
