#!/usr/bin/env bash
# pytest 9.2.0 with pytest-xdist 3.8.0: --dist loadgroup groups nothing any more. Tests that a mark xdist_group should keep in one
# worker, since they share a server, a port or a GPU, run in several at once; no error, no warning.
#
# pytest-xdist writes the group behind the test's id, into the private attribute _nodeid, and its scheduler splits by what it
# reads there as nodeid; pytest 9.2.0 makes nodeid of another attribute. With pytest 9.1.1 the same two go together.
# Where: xdist/remote.py (pytest_collection_modifyitems) and _pytest/nodes.py (Node.nodeid).
#
# Seen on 2026-11-28, Python 3.11, eight tests of one group over two workers:
#   pytest 9.1.1, pytest-xdist 3.8.0: 8 passed, in 1 worker(s)
#   pytest 9.2.0, pytest-xdist 3.8.0: 8 passed, in 2 worker(s)
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/test_group.py" <<'PYTHON'
import time
from pathlib import Path

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_in_one_worker(number, worker_id):
    time.sleep(0.1)  # so that the other worker has its chance
    Path(__file__).with_name(f"{number}.ran").write_text(worker_id + "\n")
PYTHON
for version in 9.1.1 9.2.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet "pytest==$version" pytest-xdist==3.8.0
    cd "$folder"
    "$folder/$version/bin/python" -m pytest -q -n 2 --dist loadgroup -p no:cacheprovider test_group.py >"$folder/out"
    workers=$(cat "$folder"/*.ran | sort -u | wc -l)
    echo "pytest $version, pytest-xdist 3.8.0: $(grep -o '8 passed' "$folder/out"), in $workers worker(s)"
    [ "$workers" = "$([ "$version" = 9.1.1 ] && echo 1 || echo 2)" ]
    rm "$folder"/*.ran
done
