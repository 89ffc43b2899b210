"""A thing is there whole or not at all, is made once, and goes when nobody has used it for long or there is too much."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from bitlora import timeouts
from bitlora.files import machine_cache
from bitlora.files.machine_cache import CachePlace, cache_folder

Disk = namedtuple("Disk", "total used free")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(place, size=10):
    return place.keep(lambda folder: (folder / "file").write_bytes(b"x" * size))


def there(cache):
    return sorted(entry.name for kind in cache.glob("*") for entry in kind.iterdir() if entry.is_dir())


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("BITLORA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "bitlora"
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "other"))
    assert CachePlace.of("rows", "my data.jsonl", [1]).folder.parent == tmp_path / "other" / "rows"


def test_a_place_hangs_on_all_that_it_is_about(cache):
    about = {"source": ["a", 1.5, None], "length": 128}
    one, same = CachePlace.of("rows", "a/b c", about), CachePlace.of("rows", "a/b c", dict(reversed(about.items())))
    assert one == same
    assert one.folder.name.startswith("a-b-c-")
    assert CachePlace.of("rows", "a/b c", {**about, "length": 129}) != one


def test_what_is_kept_is_found_and_marked_as_used(cache):
    place = CachePlace.of("rows", "a", 1)
    assert place.use() is None
    assert put(place)
    os.utime(place.folder, (1, 1))
    assert place.use() is not None
    assert time.time() - place.folder.stat().st_mtime < 60
    assert (place.folder / "file").read_bytes() == b"x" * 10


def test_what_is_not_written_whole_is_not_there(cache, caplog):
    def half(folder):
        (folder / "file").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    place = CachePlace.of("rows", "a", 1)
    assert not place.keep(half)
    assert place.use() is None
    assert there(cache) == []
    assert "No space left on device" in caplog.text
    with pytest.raises(ValueError, match="mine"):
        place.keep(lambda folder: (_ for _ in ()).throw(ValueError("mine")))
    assert there(cache) == []


def test_a_folder_that_must_not_be_written_to_is_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "file"))
    assert not put(CachePlace.of("rows", "a", 1))
    assert "cannot be kept" in caplog.text
    with CachePlace.of("rows", "a", 1).alone():
        pass


def test_the_second_of_two_that_make_the_same_keeps_the_first(cache):
    place = CachePlace.of("rows", "a", 1)

    def slow(folder):
        (folder / "file").write_bytes(b"second")
        put(place)

    assert place.keep(slow)
    assert (place.folder / "file").read_bytes() == b"x" * 10
    assert there(cache) == [place.folder.name]


def test_one_process_makes_it_while_the_others_wait(cache):
    place = CachePlace.of("rows", "a", 1)
    program = (
        "import sys, time; from bitlora.files.machine_cache import CachePlace\n"
        "place = CachePlace.of('rows', 'a', 1)\n"
        "with place.alone():\n"
        "    if place.use() is None: place.keep(lambda f: ((f / 'who').write_text(sys.argv[1]), time.sleep(0.3)))\n"
        "    print((place.folder / 'who').read_text())"
    )
    each = [
        subprocess.Popen([sys.executable, "-c", program, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    said = {one.communicate()[0] for one in each}
    assert len(said) == 1
    assert said <= {"0\n", "1\n", "2\n"}
    assert place.use() is not None


def test_what_is_damaged_is_removed(cache, caplog):
    place = CachePlace.of("rows", "a", 1)
    put(place)
    place.discard("cut short")
    assert place.use() is None
    assert "cut short" in caplog.text


def test_what_nobody_uses_any_more_goes_and_what_is_held_stays(cache):
    places = [CachePlace.of("rows", name, 1) for name in "abc"]
    assert all(map(put, places))
    held = places[1].use()
    elsewhere = cache / "by-hand"
    shutil.copytree(places[0].folder, elsewhere / "converted")
    long_ago = time.time() - timeouts.CACHE_KEPT_S - 60
    for folder in (places[0].folder, places[1].folder, elsewhere / "converted"):
        os.utime(folder, (long_ago, long_ago))
    put(CachePlace.of("other", "new", 1))
    assert [place.folder.is_dir() for place in places] == [False, True, True]
    assert (elsewhere / "converted" / "file").exists()
    held.end()
    put(CachePlace.of("other", "newer", 1))
    assert not places[1].folder.is_dir()


def test_the_least_recently_used_goes_where_the_disk_is_short(cache, monkeypatch):
    places = [CachePlace.of("rows", name, 1) for name in "abcd"]
    for age, place in enumerate(places[:3]):
        put(place, 1_000_000)
        os.utime(place.folder, (time.time() - 100 + age,) * 2)
    monkeypatch.setattr(machine_cache.shutil, "disk_usage", lambda _: Disk(9e6, 9e6, 1_000_000))
    put(places[3], 1_000_000)  # four of one megabyte, and one more is free: half of five is kept
    assert [place.folder.is_dir() for place in places] == [False, False, True, True]
    monkeypatch.setattr(machine_cache.shutil, "disk_usage", lambda _: Disk(9e6, 9e6, 0))
    put(CachePlace.of("rows", "large", 1), 9_000_000)
    assert there(cache) == [CachePlace.of("rows", "large", 1).folder.name]


def test_a_file_system_that_locks_nothing(cache, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    place = CachePlace.of("rows", "a", 1)
    with place.alone():
        assert put(place)
    assert place.use() is not None
