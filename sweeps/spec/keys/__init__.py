"""The sections of a spec that are a sweep's own: their keys, what each may be, and defaults."""
