"""Routed experts in a pass: their tokens, their products and their adapters."""
