"""A sweep from start to end: prepared, run, recorded, resumed, shown."""
