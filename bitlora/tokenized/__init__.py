"""Tokens as arrays on this machine's disk, words that were tokenized before, and several processes that make them."""
