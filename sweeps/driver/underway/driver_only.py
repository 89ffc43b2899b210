"""What the Tuner is handed and pickles, but what lives on the driver alone."""

from __future__ import annotations

from typing import Any


class DriverOnly:
    """Pickled as nothing: the Tuner writes all it is given into its restore file, and resume does not use that."""

    def __getstate__(self) -> dict[str, Any]:
        return {}
