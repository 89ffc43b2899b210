"""An adapter outside a pack: its cost, its files, over its base in PEFT's layers, merged."""
