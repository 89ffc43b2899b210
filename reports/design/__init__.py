"""How much a confirmation takes to show a margin, from what a search has shown."""
