"""The weights that a clone begins with stay as they were when it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3
import torch

from bitlora import timeouts
from bitlora.adapter.latent import Latent
from bitlora.adapter.peft_folder import load_latent, save_adapter
from bitlora.config.trial import TrialConfig
from bitlora.files.opening import open_storage
from bitlora.files.storage import Storage
from bitlora.files.writing import write_folder
from sweeps.driver.underway.warm_start import keep_weights
from sweeps.pack.bare import BARE


@pytest.fixture(params=["disk", "store"])
def storages(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Storage]]:
    """A sweep's folder as its driver sees it, and as a pack does."""
    with s3.serve_s3() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        place = str(tmp_path / "quick") if request.param == "disk" else f"s3://{server.make_bucket('starts')}/quick"
        with open_storage(place) as driver, open_storage(place) as pack:
            yield [driver, pack]


def evaluated(pack: Storage, value: float, step: int | None) -> None:
    latent = {"a.q": Latent(torch.full((1, 3), value), torch.full((2, 1), value))}
    folder = pack.folder / "trials" / "t0003" / "adapter"
    write_folder(folder, lambda part: save_adapter(part, latent, BARE, "base", step))
    pack.push("trials/t0003/adapter")


def test_a_later_evaluation_does_not_take_their_place(storages: list[Storage]) -> None:
    driver, pack = storages
    evaluated(pack, 1.5, 8)
    assert keep_weights(driver, "t0003") == 8
    evaluated(pack, 2.5, 16)
    pack.pull("starts/t0003@8")
    config = TrialConfig(**{**BARE.model_dump(), "warm_start": "t0003@8"})
    assert load_latent(pack.folder / "starts" / "t0003@8", config)["a.q"].a.unique().tolist() == [1.5]
    assert keep_weights(driver, "t0003") == 16
    assert driver.names("starts") == ["t0003@16", "t0003@8"]


def test_there_are_none(storages: list[Storage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "STORAGE_VISIBLE_S", 0.05)
    driver, pack = storages
    with pytest.raises(ValueError, match="t0003 has not been evaluated yet"):
        keep_weights(driver, "t0003")
    evaluated(pack, 1.5, None)
    with pytest.raises(ValueError, match="does not say of which step it is"):
        keep_weights(driver, "t0003")
