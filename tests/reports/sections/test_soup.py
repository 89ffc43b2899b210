"""What the report says of a soup, against numbers by hand."""

import json

from constructed import spread
from recount import recount

from bitlora.files.record import write_scores
from reports.load.sweep import load_sweep
from reports.report import write_report
from reports.sections.soup import soup
from reports.statistics.findings import findings


def write_soup(folder, own, of, seeds=(1, 2)):
    """`own` and `of` (name -> mean losses of examples of ten tokens); on each seed a hundredth more."""
    trials = {name: {str(seed): f"{name}-{seed}" for seed in seeds} for name in of}
    for seed in seeds:
        for of_whom, means in {".": own, **{trials[name][str(seed)]: means for name, means in of.items()}}.items():
            ids = [f"e{index}" for index in range(len(means))]
            losses = [10 * (mean + seed / 100) for mean in means]
            write_scores(
                folder / "soup" / str(seed) / of_whom / "test.parquet", ids, losses, [10] * len(ids), [40] * len(ids)
            )
    record = {"of": trials, "test_loss": {}, "base": {}, "versions": {}}
    (folder / "soup" / "record.json").write_text(json.dumps(record))


def said(folder):
    found = soup(findings(load_sweep(folder)))
    return "".join(part if isinstance(part, str) else part.text for part in found.parts[1].parts), found.parts[2]


def test_without_a_soup_nothing_is_said(folder, add):
    add("t0", eval_loss=2.5)
    assert soup(findings(load_sweep(folder))) is None


def test_better_tied_and_worse(folder, add):
    """All examples move together, so a difference of a tenth that all share is sure; one that half of them have is not."""
    add("t0", eval_loss=2.5)
    of = {"t0": spread(2.6, 0.1), "t1": spread(2.7, 0.1)}
    write_soup(folder, spread(2.5, 0.1), of)
    text, table = said(folder)
    assert text == "The soup is better than each of them with 95 %, all judged together: its test loss is 2.5150."
    assert [[cell.text for cell in line] for line in table.rows] == [
        ["soup", "2.5150", "–"],
        ["t0", "2.6150", "0.1000 to 0.1000"],
        ["t1", "2.7150", "0.2000 to 0.2000"],
    ]
    write_soup(folder, spread(2.59, 0.1)[::-1], of)  # a hundredth less, where examples are two tenths apart
    assert said(folder)[0].startswith("The soup has the lowest loss, and may be no better: its test loss is 2.6050; ")
    write_soup(folder, spread(2.65, 0.1), of)
    assert said(folder)[0] == "The soup is not better: its test loss is 2.6650, the best of them has 2.6150."


def test_every_number_of_it_is_recomputed(folder, add):
    data = {"source": "pydoc", "train_rows": 2585, "eval_rows": 40}
    for name, centre in (("t0", 2.5), ("t1", 2.6)):
        add(name, eval_loss=centre, scores=spread(centre, 0.1), alpha=10 * centre, record={"data": data})
    of = {"t0": spread(2.6, 0.1), "t1": spread(2.7, 0.15)}
    for own, said in (
        (spread(2.5, 0.2), "better than"),
        (spread(2.59, 0.1)[::-1], "lowest"),
        (spread(2.65, 0.1), "not"),
    ):
        write_soup(folder, own, of)
        assert f"**The soup {'has the' if said == 'lowest' else 'is'} {said}" in write_report([folder]).read_text()
        assert recount(folder) == []


def test_a_soup_that_cannot_be_read_is_noted(folder, add):
    add("t0", eval_loss=2.5)
    write_soup(folder, spread(2.5, 0.1), {"t0": spread(2.6, 0.1)})
    (folder / "soup" / "1" / "test.parquet").write_text("no")
    sweep = load_sweep(folder)
    assert sweep.soup is None
    assert any(line.startswith("soup/record.json") for line in sweep.problems)
