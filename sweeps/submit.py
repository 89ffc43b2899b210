"""What `ray submit cluster.yaml sweeps/submit.py -- SPEC …` sends to the head and runs there: `bitlora sweep SPEC …`.

Ray uploads this file alone and starts it with the login shell's `python`, so it needs nothing but the standard library
and looks for the installation itself. It runs on a terminal that nobody watches as one, so the sweep gets a pipe: plain
lines, and nothing that breaks when the connection does. `ray submit` knows only 0 and 1, so the sweep's exit code is the
last line. And it joins the arguments unquoted: none may have a space, a brace or a glob; put such values in the spec.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from types import FrameType

CHOSEN = "BITLORA_PYTHON"
"""Names the interpreter that has the project, where it is not to be looked for."""


def main(args: list[str]) -> int:
    """Run `bitlora sweep` with `args` on the cluster that this machine is the head of.

    Returns:
        0 for 0, 1 for every other exit code.
    """
    try:
        command = find()
    except LookupError as error:
        _show(f"{error.args[0]}\n".encode())
        return _ended(2)
    # TTY_COMPATIBLE=0: rich shows no live display and no colours, whatever FORCE_COLOR says.
    environment = {**os.environ, "RAY_ADDRESS": "auto", "TTY_COMPATIBLE": "0", "PYTHONUNBUFFERED": "1"}
    # A session of its own: the terminal's Ctrl-C arrives once, from here, and a lost connection does not kill it.
    process = subprocess.Popen(
        [*command, "sweep", *args],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    asked = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        lost = number == signal.SIGHUP
        if not (lost and asked):  # after Ctrl-C the connection goes too: that is not a second wish
            process.send_signal(signal.SIGINT if lost else number)
        asked = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    assert process.stdout is not None
    for line in process.stdout:
        _show(line)
    code = process.wait()
    return _ended(code if code >= 0 else 128 - code)


def find() -> list[str]:
    """The command that is `bitlora` on this machine.

    Raises:
        LookupError: there is none; one line says where it was looked for.
    """
    if chosen := os.environ.get(CHOSEN):
        if shutil.which(chosen) is None:
            raise LookupError(
                f"{CHOSEN}={chosen}: no such program; give the python of the environment with bitlora in it"
            )
        return [chosen, "-m", "sweeps"]
    if script := shutil.which("bitlora"):
        return [script]
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec("sweeps.cli"):
            return [sys.executable, "-m", "sweeps"]
    raise LookupError(
        f"bitlora is not installed on this machine: there is none on PATH ({os.environ.get('PATH', '')}), "
        f"{sys.executable} has no module sweeps.cli, and {CHOSEN} is not set"
    )


def _show(line: bytes) -> None:
    # Past Python's buffer, which would fail again at the exit. Without a connection the sweep still ends in order.
    with contextlib.suppress(OSError):
        while line:
            line = line[os.write(1, line) :]


def _ended(code: int) -> int:
    _show(f"exit code: {code}\n".encode())
    return int(code != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
