"""What the set-up says was asked for."""

import json

from constructed import page_of


def trials(folder):
    (line,) = [line for line in page_of(folder).splitlines() if "asked for" in line]
    return line


def test_bounds_of_adapters(folder, add):
    add("t0", eval_loss=2.5)
    assert "no adapter" not in trials(folder)
    spec = (folder / "sweep.yaml").read_text()
    where = "\n  where: {adapter_bytes: {max: 1000000}, adapter_params: {max: 20000}}"
    (folder / "sweep.yaml").write_text(spec.replace("search:", f"search:{where}", 1))
    assert "; no adapter of more than 1,000,000 bytes or 20,000 parameters" in trials(folder)


def test_budgets_and_what_ended_the_search(folder, add):
    add("t0", eval_loss=2.5)
    spec = (folder / "sweep.yaml").read_text()
    budgets = "\n  hours: 1.5\n  tokens: 20000\n  patience: null"
    (folder / "sweep.yaml").write_text(spec.replace("search:", f"search:{budgets}", 1))
    assert "; at most 1.5 hours of search; at most 20,000 tokens to train on" in trials(folder)
    assert "in a row" not in trials(folder)
    assert "no more" not in trials(folder)
    runs = [{"seconds": 1.0, "search_ended": ""}, {"seconds": 1.0, "search_ended": "search.hours (1.5) are over"}]
    (folder / "runs.jsonl").write_text("".join(f"{json.dumps(run)}\n" for run in runs))
    said = "; no more were asked for, since search.hours (1.5) are over: what had begun went on to its end"
    assert said in trials(folder)


def test_earlier_sweeps_that_the_sampler_knew(folder, add):
    add("t0", eval_loss=2.5)
    spec = (folder / "sweep.yaml").read_text()
    (folder / "sweep.yaml").write_text(spec.replace("search:", "search:\n  from: [runs/one, 's3://b/two']", 1))
    assert "; the sampler knew the trials of runs/one, s3://b/two" in trials(folder)


def test_what_was_known_of_learning_rates_before(folder, add):
    add("t0", eval_loss=2.5)
    assert "prior" not in trials(folder)
    runs = [{"seconds": 1.0, "prior": ""}, {"seconds": 1.0, "prior": "learning rates around 0.002; taken by 3 trials"}]
    (folder / "runs.jsonl").write_text("".join(f"{json.dumps(run)}\n" for run in runs))
    assert "; prior: learning rates around 0.002; taken by 3 trials" in trials(folder)
    runs.append(runs[1])  # the sweep has gone on, and found the same
    (folder / "runs.jsonl").write_text("".join(f"{json.dumps(run)}\n" for run in runs))
    assert trials(folder).count("prior: ") == 1


def test_a_population_is_said_by_its_own_keys(folder, add):
    add("t0", eval_loss=2.5)
    assert "scheduler asha (grace 8, reduction 2)" in trials(folder)
    spec = (folder / "sweep.yaml").read_text()
    asked = "{name: pbt, grace: 8, reduction: 2, interval: 8, quantile: 0.25, resample: 0.1}"
    (folder / "sweep.yaml").write_text(spec.replace("{name: asha, grace: 8, reduction: 2}", asked))
    assert "scheduler pbt (interval 8, quantile 0.25, resample 0.1)" in trials(folder)
    (folder / "sweep.yaml").write_text(
        spec.replace("{name: asha, grace: 8, reduction: 2}", asked.replace("pbt", "pb2"))
    )
    assert "scheduler pb2 (interval 8, quantile 0.25, resample 0.1)" in trials(folder)
