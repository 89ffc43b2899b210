"""The slots of a pack: one trial in each, the vectors that hold them all, and their optimizer."""
