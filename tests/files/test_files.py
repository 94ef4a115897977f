"""Files that are whole or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from l0prune.files import clear_abandoned, draft_folder, remove, write_whole


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


HOLD = """
import sys, time
from pathlib import Path
from l0prune.files import draft_folder
with draft_folder(Path({target!r})) as draft:
    (draft / "half").write_text("of it")
    print("ready", flush=True)
    sys.stdin.read()
"""


def holder(target: Path) -> subprocess.Popen:
    """A process at work on a draft beside `target`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(target=str(target))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.skipif(os.name != "posix", reason="locks of drafts are posix")
def test_the_draft_of_a_killed_process_goes_with_the_next_and_that_of_a_live_one_stays(tmp_path):
    killed, alive = holder(tmp_path / "a"), holder(tmp_path / "b")
    killed.kill()
    killed.wait()
    assert len(list(tmp_path.iterdir())) == 2

    write_whole(tmp_path / "c", "text")

    (draft, written) = sorted(tmp_path.iterdir())
    assert (draft / "half").read_text() == "of it"
    assert written.name == "c"
    alive.communicate("")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_draft_folder_is_gone_afterwards_also_after_an_error(tmp_path):
    with draft_folder(tmp_path / "a") as draft:
        (draft / "b").mkdir()

    with pytest.raises(ZeroDivisionError), draft_folder(tmp_path / "a"):
        raise ZeroDivisionError

    assert list(tmp_path.iterdir()) == []


def test_clearing_up_takes_nothing_of_the_users(tmp_path):
    names = [".a.tmp", "draft", ".hidden"]
    for name in names:
        (tmp_path / name).touch()

    clear_abandoned(tmp_path)
    clear_abandoned(tmp_path / "nowhere")

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_modes_follow_the_users_mask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a", "text")
        with draft_folder(tmp_path / "b") as draft:
            mode = draft.stat().st_mode
    finally:
        os.umask(before)

    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask
    assert mode & 0o777 == 0o777 & ~mask


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")

    write_whole(tmp_path / "link", "new")

    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "link").is_symlink()


def test_removing_a_link_leaves_what_it_points_at(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    for target in ("folder", "nowhere"):
        (tmp_path / "link").symlink_to(tmp_path / target)
        remove(tmp_path / "link")

    remove(tmp_path / "nothing")
    assert (tmp_path / "folder" / "file").exists()
    remove(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
