"""Sweeps of trials on Ray: from a spec to records and a report."""
