"""Adapters asked over HTTP: an OpenAI-compatible endpoint over an engine whose slots answer side by side."""
