"""What is tried next: samplers, what they know, and suggestions before they are trials."""
