"""Text out of many adapters at once over one base: greedy decoding, token by token."""
