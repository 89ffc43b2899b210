"""`python -m sweeps.drain`: a machine that is about to be taken away leaves its cluster in time.

It watches the metadata service of the cloud that the machine is rented from (AWS, Google, Azure), and at a notice asks
Ray to drain this machine's node: packs that train there save what they have and go elsewhere. `--now SECONDS` does that
at once and waits until they are gone: for a pod that is stopped, and for a machine that somebody is about to switch off.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Final, Protocol
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from bitlora import timeouts
from sweeps.onray.machine import DrainError, LocalNode, drain, local_nodes

SERVICE: Final = "http://169.254.169.254"
"""Where a machine of any of the three clouds asks about itself."""
MOST_BYTES: Final = 2**20
"""Of an answer; a notice has hundreds."""


class NoAnswer(Exception):
    """The metadata service is another cloud's, is late, or is away: nothing is known."""

    def __init__(self, code: int | None = None) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Notice:
    """The machine will be taken away."""

    why: str
    deadline: float
    """When, at the earliest: seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Service:
    """The metadata service at `url`; asked without a proxy, which would not reach it."""

    url: str

    def ask(self, path: str, headers: dict[str, str], method: str = "GET") -> str:
        """Raises NoAnswer."""
        request = Request(self.url + path, headers=headers, method=method)
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=timeouts.NOTICE_ANSWER_S) as answer:
                return str(answer.read(MOST_BYTES).decode(errors="replace"))
        except HTTPError as error:
            error.close()
            raise NoAnswer(error.code) from None
        except (OSError, http.client.HTTPException):
            raise NoAnswer from None


class Cloud(Protocol):
    """What a cloud says to a machine of its own."""

    name: ClassVar[str]

    def notice(self) -> Notice | None:
        """What it has to say; None: the machine stays. Raises NoAnswer."""


class Aws:
    """A spot machine of AWS, two minutes before. That AWS would rather have it rebalanced takes nothing away."""

    name: ClassVar[str] = "AWS"

    def __init__(self, service: Service) -> None:
        self._service = service
        self._token: str | None = None

    def notice(self) -> Notice | None:
        fresh = self._token is None
        if self._token is None:
            life = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
            self._token = self._service.ask("/latest/api/token", life, "PUT")
        try:
            token = {"X-aws-ec2-metadata-token": self._token}
            found = _mapping(self._service.ask("/latest/meta-data/spot/instance-action", token))
        except NoAnswer as error:
            if error.code == 404:
                return None
            if error.code != 401:
                raise
            self._token = None  # it has expired
            if fresh:
                raise
            return self.notice()
        if found.get("action") not in ("terminate", "stop", "hibernate"):
            return None
        return Notice(f"spot: {found['action']}", _moment(found.get("time"), timeouts.NOTICE_AWS_S))


class Google:
    """A spot or preemptible machine of Google's, half a minute before; one whose host is maintained, a minute or more."""

    name: ClassVar[str] = "Google Cloud"

    def __init__(self, service: Service) -> None:
        self._service = service

    def notice(self) -> Notice | None:
        if self._ask("preempted", "TRUE|FALSE") == "TRUE":
            return Notice("preempted", time.time() + timeouts.NOTICE_GOOGLE_S)
        # Where it moves, it stays up.
        if self._ask("maintenance-event", "[A-Z_]+") == "TERMINATE_ON_HOST_MAINTENANCE":
            return Notice("its host is maintained", time.time() + timeouts.NOTICE_MAINTENANCE_S)
        return None

    def _ask(self, what: str, form: str) -> str:
        return _word(self._service.ask(f"/computeMetadata/v1/instance/{what}", {"Metadata-Flavor": "Google"}), form)


class Azure:
    """A machine of Azure's, half a minute before or more. The events are those of its neighbours too."""

    name: ClassVar[str] = "Azure"

    def __init__(self, service: Service) -> None:
        self._service = service
        self._machine: str | None = None

    def notice(self) -> Notice | None:
        if self._machine is None:
            name = self._ask("instance/compute/name?api-version=2021-02-01&format=text")
            self._machine = _word(name, r"[\w.-]+")
        events = _mapping(self._ask("scheduledevents?api-version=2020-07-01")).get("Events")
        for event in events if isinstance(events, list) else ():
            machines = event.get("Resources") if isinstance(event, dict) else None
            if not isinstance(machines, list) or self._machine not in machines:
                continue
            # What freezes it for some seconds ends nothing.
            if (kind := event.get("EventType")) in ("Preempt", "Terminate", "Redeploy", "Reboot"):
                return Notice(f"event {kind}", _moment(event.get("NotBefore"), timeouts.NOTICE_AZURE_S))
        return None

    def _ask(self, what: str) -> str:
        return self._service.ask(f"/metadata/{what}", {"Metadata": "true"})


def _word(text: str, form: str) -> str:
    """An answer that is one word; what else comes is some proxy's page."""
    if not re.fullmatch(form, text.strip()):
        raise NoAnswer
    return text.strip()


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        raise NoAnswer from None
    if not isinstance(found, dict):
        raise NoAnswer
    return found


def _moment(text: Any, otherwise: float) -> float:
    """A point of time as a cloud writes it, in seconds since 1970; of one that says none, so many seconds from now."""
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = read(str(text))
        except ValueError:
            continue
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    return time.time() + otherwise


def watch(nodes: Sequence[LocalNode], service: Service, say: Callable[[str], object]) -> int:
    """Ask for a notice every NOTICE_POLL_S, and drain the nodes when it comes.

    Returns:
        When each is drained, once, or has ended.
    """
    clouds: list[Cloud] = [Aws(service), Google(service), Azure(service)]
    known: Cloud | None = None
    notice: Notice | None = None
    left = list(nodes)
    while left := [node for node in left if node.is_up()]:
        for cloud in [known] if known is not None else clouds:
            if notice is not None:
                break
            try:
                notice = cloud.notice()
            except NoAnswer:
                continue
            if known is None:
                known = cloud
                say(f"watching {cloud.name} for a notice; Ray node{'s' * (len(left) > 1)} {_ids(left)}")
        if notice is not None and known is not None:
            left = drain_all(left, notice.deadline, f"{known.name}: {notice.why}", say)
        if left:
            time.sleep(timeouts.NOTICE_POLL_S)
    return 0


def leave(nodes: Sequence[LocalNode], seconds: float, say: Callable[[str], object]) -> int:
    """Drain the nodes now, and wait for at most so long until nothing is left on them.

    Returns:
        An exit code: 1 where the control service did not take it.
    """
    deadline, left = time.time() + seconds, list(nodes)
    if not left:
        say("no Ray node but a head's runs on this machine: there is nothing to drain")
    while left := drain_all([node for node in left if node.is_up()], deadline, "asked for", say):
        if time.time() >= deadline:
            return 1
        time.sleep(timeouts.NOTICE_POLL_S)
    while any(node.is_up() for node in nodes) and time.time() < deadline:
        time.sleep(timeouts.DRAINED_POLL_S)
    return 0


def drain_all(nodes: Sequence[LocalNode], deadline: float, why: str, say: Callable[[str], object]) -> list[LocalNode]:
    """Drain nodes; gives those for which the control service did not take it."""
    left = []
    for node in nodes:
        try:
            drain(node, deadline, why)
        except DrainError as error:
            left.append(node)
            say(f"{why}; Ray node {node.id} is not drained: {error}")
        else:
            say(f"{why}; Ray node {node.id} is drained, {max(0.0, deadline - time.time()):.0f} s before its end")
    return left


def _ids(nodes: Sequence[LocalNode]) -> str:
    return ", ".join(node.id for node in nodes)


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} sweeps.drain: {line}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The program's options."""
    found = argparse.ArgumentParser(prog="python -m sweeps.drain", description=(__doc__ or "").split("\n\n")[1])
    found.add_argument(
        "--now", type=float, metavar="SECONDS", help="drain now, and wait for at most so long until all has left"
    )
    found.add_argument(
        "--node", metavar="ID", help="this Ray node of the machine, in hex; default: all but the head of a cluster"
    )
    found.add_argument("--metadata", metavar="URL", default=SERVICE, help="the metadata service; default: %(default)s")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    options = parser().parse_args(arguments)
    nodes = local_nodes(options.node)
    if options.now is not None:
        return leave(nodes, options.now, _say)
    if not nodes:
        _say("no Ray node but a head's runs on this machine: there is nothing to watch for")
        return 1
    return watch(nodes, Service(options.metadata), _say)


if __name__ == "__main__":
    sys.exit(main())
