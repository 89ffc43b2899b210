"""Trials and the packs they run in: who waits, who runs where, which packs there are."""
