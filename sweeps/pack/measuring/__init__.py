"""What a pack's trials come to at an evaluation: their loss, and what else the spec measures."""
