"""Files that are whole or not there."""

import os

import pytest

from l0prune.files import write_whole


def test_text_and_bytes_are_written(tmp_path):
    write_whole(tmp_path / "a", "größer\n")
    write_whole(tmp_path / "b", b"\x00\xff")

    assert (tmp_path / "a").read_bytes() == "größer\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"


def test_the_old_file_stays_where_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a"
    write_whole(path, "old")
    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_readable_by_whom_the_users_other_files_are(tmp_path):
    (tmp_path / "other").touch()
    write_whole(tmp_path / "a", "text")

    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode
