"""How values moved under way, as a report shows it."""

from reports.load.sweep import load_sweep
from reports.sections.schedules import schedules
from reports.statistics.findings import findings

MOVED = [
    {"until": 8, "trial": "t1", "learning_rate": 1e-3, "weight_decay": 0.0, "dropout": 0.1, "max_grad_norm": 1.0},
    {"until": 16, "trial": None, "learning_rate": 8e-4, "weight_decay": 0.0, "dropout": 0.05, "max_grad_norm": 1.0},
]


def table_of(folder):
    made = schedules(findings(load_sweep(folder)))
    return made and [[one.text for one in row] for row in made.parts[1].rows]


def test_a_trial_whose_values_moved_has_a_line_for_each_stage_and_its_own(folder, add):
    add("t0", eval_loss=2.5, learning_rate=5e-4, max_grad_norm=2.0, weight_decay=0.1, record={"schedule": MOVED})
    add("t1", eval_loss=2.0)
    assert table_of(folder) == [
        ["t0", "2.5000", "8", "t1", "1e-3", "0", "0.1", "1"],
        ["", "", "16", "t0", "8e-4", "0", "0.05", "1"],
        ["", "", "32", "t0", "5e-4", "0.1", "0", "2"],
    ]


def test_without_any_there_is_no_such_section(folder, add):
    add("t0", eval_loss=2.5)
    add("t1", eval_loss=2.5, record={"schedule": "?"})
    assert table_of(folder) is None


def test_the_best_come_first_and_not_all_of_many(folder, add):
    for number in range(12):
        add(f"t{number:02d}", eval_loss=3.0 - number / 10, record={"schedule": MOVED[:1]})
    made = schedules(findings(load_sweep(folder)))
    assert [row[0].text for row in made.parts[1].rows][::2] == [f"t{number:02d}" for number in range(11, 1, -1)]
    assert "The best 10 of 12 are shown." in str(made.parts[0])


def test_what_is_nonsense_there_is_shown_as_missing(folder, add):
    add("t0", "failed", record={"schedule": [3, {"until": "x", "learning_rate": None, "trial": ["a"]}]})
    assert len(table_of(folder)) == 2
