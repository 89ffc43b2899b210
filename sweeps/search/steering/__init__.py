"""What a person asks of a search is done to it."""
