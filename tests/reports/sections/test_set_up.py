"""What the set-up says was asked for."""

from reports.report import write_report


def trials(folder):
    (line,) = [line for line in write_report([folder]).read_text().splitlines() if "asked for" in line]
    return line


def test_bounds_of_adapters(folder, add):
    add("t0", eval_loss=2.5)
    assert "no adapter" not in trials(folder)
    spec = (folder / "sweep.yaml").read_text()
    where = "\n  where: {adapter_bytes: {max: 1000000}, adapter_params: {max: 20000}}"
    (folder / "sweep.yaml").write_text(spec.replace("search:", f"search:{where}", 1))
    assert "; no adapter of more than 1,000,000 bytes or 20,000 parameters" in trials(folder)
