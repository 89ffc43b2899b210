"""The frozen, typed configuration of base, data, adapter and training, validated where it enters."""
