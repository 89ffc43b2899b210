"""The key `confirm` of a spec."""

from __future__ import annotations

import pytest

from sweeps.spec.spec import dump_spec, load_spec


@pytest.mark.parametrize(
    ("written", "share", "of"),
    [("0.5 %", 0.005, "loss"), ("5% of the gain", 0.05, "gain"), ("{share: 0.02, of: gain}", 0.02, "gain")],
)
def test_a_margin_is_a_share_of_the_loss_or_of_the_gain(write_spec, tmp_path, written, share, of):
    spec = load_spec(write_spec("quick"), [f"confirm.margin={written}"])
    assert (spec.confirm.margin.share, spec.confirm.margin.of) == (pytest.approx(share), of)
    (tmp_path / "again.yaml").write_text(dump_spec(spec))
    assert load_spec(tmp_path / "again.yaml").confirm == spec.confirm
