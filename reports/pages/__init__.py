"""Pages that are no report of one sweep: several sweeps compared, the model card of an adapter."""
