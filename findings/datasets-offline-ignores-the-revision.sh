#!/usr/bin/env bash
# datasets 5.2.0: where the hub does not answer, load_dataset(name, revision=X) gives the newest cached copy, whatever X is.
#
# Two commits of a data set are in the cache, with other rows. Offline (HF_HUB_OFFLINE), asking for the older of them by its
# full commit gives the rows of the newer one; so does asking for a commit or a tag that was never fetched. No error; the
# logger says that the latest cached version is used, and nothing of the revision. So a run that pins its data to a commit,
# which is there, trains on another one.
# Where: datasets/load.py looks for the cached folders of owner___name and is not told of the revision then. What was
# loaded shows only in the path of the cache files, whose folder has the commit's name.
#
# Seen on 2026-11-27, Python 3.11:
#   revision None                                     2 rows of bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
#   revision aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 2 rows of bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
#   revision bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb 2 rows of bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
#   revision v2.0                                     2 rows of bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
# Fails if that changes. The cache is filled by hand, with data sets that the library itself has prepared.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
cd "$folder"
HF_HOME="$folder/home" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
import shutil
import time
from pathlib import Path

import datasets
from huggingface_hub import constants

OLDER, NEWER = "a" * 40, "b" * 40


def cached(commit, rows, age):
    """A commit of owner/name in the cache, fetched so many seconds ago."""
    source = Path(f"{commit[0]}.jsonl")
    source.write_text("".join(json.dumps({"prompt": f"{n}+1=", "completion": str(n + 1)}) + "\n" for n in range(rows)))
    made = datasets.load_dataset("json", data_files=str(source), cache_dir=f"made-{commit[0]}")
    prepared = Path(made["train"].cache_files[0]["filename"]).parent
    kept = Path(shutil.copytree(prepared, Path("cache") / "owner___name" / "default" / "0.0.0" / commit))
    (kept / "json-train.arrow").rename(kept / "name-train.arrow")
    then = time.time() - age
    for path in (*kept.iterdir(), kept):
        os.utime(path, (then, then))


cached(OLDER, 1, 3600)
cached(NEWER, 2, 60)
datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
datasets.logging.set_verbosity_error()
for revision in (None, OLDER, NEWER, "v2.0"):
    found = datasets.load_dataset("owner/name", revision=revision, cache_dir="cache")["train"]
    of = Path(found.cache_files[0]["filename"]).parent.name
    print(f"revision {revision!s:<41}{len(found)} rows of {of}")
    assert (len(found), of) == (2, NEWER)
PYTHON
echo "as described"
