"""What each command takes, whom it asks, and what it answers to bad input."""
