"""Trials handed on: exported in every form, checked, described, measured where they are served, pushed to the hub."""
