from __future__ import annotations

from reports.load.sweep import load_sweep
from reports.statistics.budget import budget


def test_steps_that_stopping_saved(folder, add):
    add("a", eval_loss=2.5)
    add("b", "pruned", eval_loss=2.6, steps=8)
    add("c", "pruned", eval_loss=2.6, steps=16)
    add("d", "failed", steps=4)
    found = budget(load_sweep(folder).trials).set_index("status")
    assert found["trials"].to_dict() == {"completed": 1, "pruned": 2, "failed": 1}
    assert found["steps"].to_dict() == {"completed": 32, "pruned": 24, "failed": 4}
    assert found["saved"].to_dict() == {"completed": 0, "pruned": 40, "failed": 0}
    # A second for 8 steps, so 3 for the 24 that are left; a second for 16, so 1 for 16.
    assert found["saved_seconds"].to_dict() == {"completed": 0, "pruned": 4, "failed": 0}
    assert found["tokens"].to_dict() == {"completed": 3200, "pruned": 2400, "failed": 400}
