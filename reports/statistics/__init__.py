"""What the tables of a sweep say: who ranks, who won and how sure that is, what mattered, what it took."""
