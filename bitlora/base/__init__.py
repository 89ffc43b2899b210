"""The frozen base: found, described, loaded."""
