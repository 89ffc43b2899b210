"""A report over axes whose values are texts: targets and patterns."""

import re

from constructed import page_of

PATTERN = "q_proj: 8, layers.(0|1).mlp.*: 32"
REGEX = r".*layers\.(0|1)\..*proj"


def test_targets_and_patterns_are_axes_like_others(folder, add):
    spec = (folder / "sweep.yaml").read_text()
    axes = f"    targets: [attention, mlp, '{REGEX}']\n    rank_pattern: [none, '{PATTERN}']\n    learning_rate"
    (folder / "sweep.yaml").write_text(spec.replace("    learning_rate", axes))
    loss = 2.7
    for number in range(12):
        loss += 0.01 if number % 5 else -0.013
        add(
            f"t{number:04}",
            eval_loss=loss,
            quantizer="none",
            rank=(8, 16)[number % 2],
            learning_rate=2e-4 * (1 + number),
            targets=("attention", "mlp", REGEX)[number % 3],
            rank_pattern=("none", PATTERN)[number // 2 % 2],
            record={"base": {"model": "tiny", "params": 1000, "adapted_params": (24, 824, 12)[number % 3]}},
        )
    page = page_of(folder)
    assert "rank pattern (none, q_proj: 8, layers.(0\\|1).mlp.\\*: 32); targets (attention, mlp, " in page
    assert "- Adapters on: layers that hold 1.2 % to 82.4 % of the base's parameters\n" in page
    best = "quantizer none, rank 8, alpha 16, learning rate 2e-4, targets attention, rank pattern none"
    assert f"**t0000** ({best}) **has the lowest loss**" in page
    board = page.split("## Leaderboard")[1]
    head, _, *rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in board.splitlines() if line[:1] == "|"
    ]
    found = [dict(zip(head, row, strict=False)) for row in rows[:12]]
    assert {row["targets"] for row in found} == {"attention", "mlp", r".\*layers\\.(0\|1)\\..\*proj"}
    assert {row["rank pattern"] for row in found} == {"none", r"q_proj: 8, layers.(0\|1).mlp.\*: 32"}
