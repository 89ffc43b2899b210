"""A pack: one Ray Train run that trains many trials over one base."""
