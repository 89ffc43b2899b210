"""What an adapter's weights and inputs pass through in the forward pass."""
