"""No contract is tested on a cluster, or over the network."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray starts itself at the first call that needs it: not here."""
    if "ray" in sys.modules:
        import ray
        from ray._private import auto_init_hook

        monkeypatch.setattr(auto_init_hook, "enable_auto_connect", False)
        monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("this test would have started Ray"))
