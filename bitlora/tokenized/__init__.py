"""Tokens as arrays on this machine's disk, and words that were tokenized before."""
