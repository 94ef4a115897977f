"""The border around every reader: all that goes wrong is one short line that names the file, and nothing but files is opened."""

import os
import zipfile

import pytest

from l0prune.errors import CheckpointError, DataError, FileFormatError
from l0prune.reading import bounded_archive, is_file, read_json, reading, require_bounded, shortened


def message(path, action, *, error=FileFormatError, **keywords):
    with pytest.raises(error) as caught, reading(path, "test file", error=error, **keywords):
        action()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300 + len(str(path))
    assert str(path) in text
    return text


def raising(error):
    def action():
        raise error

    return action


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    return path


ERRORS = [
    *(KeyError("name"), IndexError("list index out of range"), ValueError("a\nb" * 500), RecursionError("deep")),
    *(OverflowError("large"), AssertionError(), SyntaxError("eof"), TypeError("none"), EOFError(), OSError("odd")),
    *(ZeroDivisionError(), StopIteration(), RuntimeError("\ud800\x1b[31m"), AttributeError("x" * 10_000)),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_exception_says_that_the_file_is_damaged(file, error):
    text = message(file, raising(error), error=DataError)

    assert "is damaged or is not a test file" in text
    assert text.endswith("copy or download it again.")
    assert text.isprintable()


def test_memory_that_is_not_there_is_said(file):
    assert "more memory" in message(file, raising(MemoryError()))


def test_the_cause_is_kept(file):
    with pytest.raises(FileFormatError) as caught, reading(file, "test file"):
        raise KeyError("x")

    assert isinstance(caught.value.__cause__, KeyError)


def test_errors_of_ours_pass_as_they_are_and_long_ones_are_shortened(file):
    assert message(file, raising(CheckpointError(f"{file}: so it is.")), error=CheckpointError) == f"{file}: so it is."
    long = message(file, raising(CheckpointError(f"{file}: {'name ' * 900} end; do this.")), error=CheckpointError)
    assert long.endswith("do this.")
    assert message(file, raising(CheckpointError("nameless")), error=CheckpointError) == f"{file}: nameless"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_error_of_the_file_passes(file, error):
    with pytest.raises(error), reading(file, "test file"):
        raise error


def never():
    pytest.fail("it was opened")


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 42)

    assert "pipe" in message(tmp_path / "pipe", never)
    assert "device" in message(tmp_path / "zeros", never)
    assert "is a folder" in message(tmp_path, never)
    assert "no such file" in message(tmp_path / "none", never)
    assert "no such file" in message(tmp_path / "none" / "none", never)
    assert "cannot be read" in message(tmp_path / "loop", never)
    assert "cannot be read" in message(tmp_path / ("n" * 5000), never)
    assert "memory" in message(tmp_path / "huge", never)
    assert "is not a folder" in message(tmp_path / "huge", never, folder=True)
    assert not is_file(tmp_path / "pipe")


def test_a_name_that_no_file_can_have_is_an_error_of_ours():
    with pytest.raises(FileFormatError, match="cannot be the name of a file"), reading("a\0b", "test file"):
        never()


def test_a_claim_out_of_proportion_is_refused(tmp_path):
    require_bounded(1 << 29, 10, tmp_path)
    with pytest.raises(FileFormatError, match=r"claims 4\.398 TB of content in 10 bytes of file"):
        require_bounded(1 << 42, 10, tmp_path)
    with pytest.raises(FileFormatError, match="memory"):
        require_bounded(1 << 60, 1 << 60, tmp_path)


def test_an_archive_that_unfolds_without_end_is_not_unfolded(tmp_path):
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x", "w", force_zip64=True) as member,
    ):
        for _ in range(17):
            member.write(bytes(1 << 26))

    with pytest.raises(FileFormatError, match="claims"):
        bounded_archive(path, path.stat().st_size, path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"NaN",
        b'{"a": Infinity}',
        b"1" * 10_000,
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"\0",
    ],
)
def test_text_that_is_no_json_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)

    with pytest.raises(FileFormatError, match=r"a\.json is damaged or is not a record"):
        read_json(path, "record")


def test_a_shortened_text_keeps_its_ends():
    assert shortened("a  b\n c") == "a b c"
    text = shortened("start " + "x" * 1000 + " end", 60)
    assert len(text) <= 60
    assert text.startswith("start")
    assert text.endswith("end")
