"""One forward and backward pass of many adapters over one frozen base."""
