"""A sweep's data files, kept beside its spec: read under their names, or from their copies, or else one line says why."""

import json

import pytest
import s3

from bitlora.config.sections import DataConfig
from bitlora.data.sources import How, read_examples
from bitlora.files.opening import open_storage
from sweeps.cli.begin import errors_to_begin
from sweeps.driver import kept
from sweeps.driver.kept import keep, places, source_file
from sweeps.spec.errors import InputError


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Where the user sits: two files, named as one does there."""
    home = tmp_path / "home"
    (home / "more").mkdir(parents=True)
    for name, count in (("rows.jsonl", 3), ("more/rows.jsonl", 5)):
        rows = [{"prompt": f"{name} {number}", "completion": "x"} for number in range(count)]
        (home / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(home)
    return DataConfig(source=["rows.jsonl", "pydoc"], eval_source="more/rows.jsonl")


@pytest.fixture
def folder(data, tmp_path):
    """A sweep's, that has both."""
    folder = tmp_path / "sweep"
    keep([source_file("rows.jsonl"), source_file("more/rows.jsonl")], folder)
    return folder


def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")


def refused(*arguments):
    with pytest.raises(InputError) as error:
        places(*arguments)
    return error.value.lines


def test_what_is_there_as_it_was_is_read_under_its_name(data, folder):
    assert places(data, folder) == ({}, [])
    assert places(data, folder.parent, folder) == ({}, [])


def test_from_elsewhere_the_copies_are_read_and_examples_have_their_names(data, folder, tmp_path, monkeypatch):
    names = ["rows.jsonl", "more/rows.jsonl"]
    before = read_examples(names)
    elsewhere(tmp_path, monkeypatch)
    found, said = places(data, folder)
    assert said == []
    assert found == {"rows.jsonl": folder / "data/0-rows.jsonl", "more/rows.jsonl": folder / "data/1-rows.jsonl"}
    assert read_examples(names, How(places=found)) == before
    assert places(data, tmp_path, folder) == (found, [])


def test_a_name_that_could_be_a_hub_id_stays_a_file(tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    monkeypatch.chdir(tmp_path)
    row = json.dumps({"prompt": "a", "completion": "b"})
    (tmp_path / "owner" / "rows").write_text(row)
    keep([source_file("owner/rows")], tmp_path / "sweep")
    elsewhere(tmp_path, monkeypatch)
    found, _ = places(DataConfig(source="owner/rows"), tmp_path / "sweep")
    assert len(read_examples("owner/rows", How(places=found))) == 1


def test_another_file_under_the_name(data, folder, tmp_path):
    """Beside its own spec the copy is read, and said; a sweep that goes on with a spec from elsewhere is held against the
    fingerprint of its rows, as ever."""
    (tmp_path / "home" / "rows.jsonl").write_text("{}\n")
    found, (line,) = places(data, folder)
    assert found == {"rows.jsonl": folder / "data/0-rows.jsonl"}
    assert line == f"rows.jsonl is another file by now; what was read before is in {folder}/data, and is read again"
    assert places(data, tmp_path, folder) == ({}, [])


def test_what_is_too_large_is_noted_and_has_to_be_there(data, tmp_path, monkeypatch):
    first, second = (source_file(name) for name in ("more/rows.jsonl", "rows.jsonl"))
    folder = tmp_path / "sweep"
    noted = keep([first, second], folder, most=first.bytes - 1)
    assert [file.kept for file in noted] == [None, "1-rows.jsonl"]
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["1-rows.jsonl", "kept.json"]
    assert json.loads((folder / "data" / "kept.json").read_text())[0] == {
        "name": "more/rows.jsonl", "bytes": first.bytes, "sha256": first.sha256, "kept": None
    }  # fmt: skip
    assert places(data, folder) == ({}, [])
    right = f"give it as it was: {first.bytes} bytes, SHA-256 {first.sha256[:16]}…"
    (tmp_path / "home/more/rows.jsonl").write_text("{}")
    assert refused(data, folder) == [
        f"data: more/rows.jsonl: is not what it was, and it was too large to keep a copy of; {right}"
    ]
    elsewhere(tmp_path, monkeypatch)
    assert refused(data, tmp_path, folder) == [
        f"data: more/rows.jsonl: is not there, and it was too large to keep a copy of; {right}"
    ]


def test_all_copies_together_fit(data, tmp_path):
    sizes = [source_file(name) for name in ("rows.jsonl", "more/rows.jsonl")]
    noted = keep(sizes, tmp_path / "sweep", most=sizes[1].bytes)
    assert [file.kept for file in noted] == ["0-rows.jsonl", None]
    assert kept.MOST_BYTES == 16 * 2**20


def test_a_copy_that_is_lost_or_changed(data, folder, tmp_path, monkeypatch):
    elsewhere(tmp_path, monkeypatch)
    copy = folder / "data" / "0-rows.jsonl"
    copy.write_text(copy.read_text().replace("x", "y"))
    (folder / "data" / "1-rows.jsonl").unlink()
    assert [line.partition("; ")[0] for line in refused(data, folder)] == [
        f"data: {name}: is not there, and its copy {folder}/data/{number}-rows.jsonl is missing or has changed"
        for number, name in enumerate(("rows.jsonl", "more/rows.jsonl"))
    ]


def test_a_file_that_changes_while_it_is_read(data, tmp_path):
    file = source_file("rows.jsonl")
    (tmp_path / "home" / "rows.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"data: rows\.jsonl: was changed while it was read"):
        keep([file], tmp_path / "sweep")


@pytest.mark.parametrize(
    "noted",
    ["[1]", "{", '[{"name": "rows.jsonl", "bytes": 1, "sha256": "' + 64 * "0" + '", "kept": "../../etc/passwd"}]'],
)
def test_notes_that_are_none(data, tmp_path, noted):
    (tmp_path / "sweep" / "data").mkdir(parents=True)
    (tmp_path / "sweep" / "data" / "kept.json").write_text(noted)
    (line,) = refused(data, tmp_path / "sweep")
    assert line.startswith(f"{tmp_path}/sweep/data/kept.json: not what a sweep notes of its data files")


def test_a_driver_that_is_killed_before_it_has_written_the_spec_leaves_nothing_in_the_way(folder, tmp_path):
    with open_storage(str(folder)) as storage:
        assert errors_to_begin(storage) == []
    mine = tmp_path / "mine"
    (mine / "data").mkdir(parents=True)
    (mine / "data" / "rows.jsonl").write_text("{}")
    with open_storage(str(mine)) as storage:
        assert "is not empty" in errors_to_begin(storage)[0]


def test_in_object_storage_too(data, folder, tmp_path, monkeypatch):
    with s3.serve_s3() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        out = f"s3://{server.make_bucket('sweeps')}/quick"
        with open_storage(out) as storage:
            keep([source_file("rows.jsonl"), source_file("more/rows.jsonl")], storage.folder)
            storage.push("data")
        elsewhere(tmp_path, monkeypatch)
        with open_storage(out) as storage:
            storage.pull("data")
            found, _ = places(data, storage.folder)
            assert [path.read_text() for path in found.values()] == [
                path.read_text() for path in (folder / "data/0-rows.jsonl", folder / "data/1-rows.jsonl")
            ]
