"""The workers of a pack settle their memory together: all have the same slots, as many as the smallest has room for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import memory_program as program


def test_all_take_the_slots_of_the_smallest_and_each_its_own_passes(float64_base, tmp_path):
    outs = [tmp_path / f"{rank}.json" for rank in range(2)]
    helpers = Path(program.__file__).parents[1]
    allowed = ["1340", "5000"]  # slots of 100 bytes and rows of 20 tokens beside 1000: two of each, and four
    common = [str(tmp_path / "meeting"), str(float64_base)]
    running = [
        subprocess.Popen(
            [sys.executable, program.__file__, str(rank), "2", *common, str(out), *allowed],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(helpers), os.environ.get("PYTHONPATH", "")])},
        )
        for rank, out in enumerate(outs)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    first, second = (json.loads(out.read_text()) for out in outs)
    plenty, nothing, known = zip(first["found"], second["found"], strict=True)
    assert [each[:2] for each in plenty] == [[4, None]] * 2
    assert [each[0] for each in nothing] == [1, 1]
    assert [each[:2] for each in known] == [[2, 140], [2, None]]
    # The first worker alone keeps what was measured, and it is the larger of both.
    assert len(first["kept"]) == 2
    assert second["kept"] == []
    assert first["kept"][0]["token"] >= 1
