"""Many LoRA adapters trained at once over one frozen base, at any precision down to one bit. Knows no Ray."""
