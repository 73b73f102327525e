"""What a user reads of an error: one line, whole, and nothing that a terminal would obey."""

import errno
import pickle
from pathlib import Path

import pytest

from rlhf.config.build import ConfigError
from rlhf.errors import FileError, one_line, printable, reason
from rlhf.files import file_errors, read_json_object, write_whole


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\r\n and\ttabs", "two lines and tabs"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07after", "after"),
        ("\x1b]8;;http://bad\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("back\x08space \x9b2Jx", "back space 2Jx"),
        ("evil\u202egpj.exe", "evilgpj.exe"),  # written right to left from there
        ("a\u2028b", "a b"),
        ("half \ud800 a character", "half ? a character"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
    ],
)
def test_printable(text: str, shown: str):
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError(), "ValueError"),
        (ValueError("\n \n"), "ValueError"),
        (KeyError("status"), "no 'status'"),
        (RuntimeError("Error(s) in loading:\n\tsize mismatch"), "Error(s) in loading: size mismatch"),
        (OSError(errno.ENOSPC, "No space left on device", "/disk/a"), "No space left on device: /disk/a"),
        (OSError(errno.ENOLCK, "No locks available"), "No locks available"),
    ],
)
def test_reason_is_never_empty_and_never_cut_at_a_line(error: Exception, said: str):
    assert reason(error) == said


def test_what_was_written_for_the_user_stands_alone():
    assert one_line(FileError("a.json: holds no JSON")) == "a.json: holds no JSON"
    assert one_line(ConfigError(["a: wrong", "b: wrong"])) == "a: wrong; b: wrong"
    assert one_line(KeyError("status")) == "KeyError: no 'status'"
    assert one_line(ZeroDivisionError()) == "ZeroDivisionError"


def test_an_error_of_the_file_system_names_the_file_and_the_remedy(tmp_path: Path):
    with pytest.raises(FileError) as told, file_errors(tmp_path / "a", "read it"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(told.value) == (
        f"{tmp_path / 'a'}: cannot read it (No space left on device); free space there and type the command again"
    )
    assert str(pickle.loads(pickle.dumps(told.value))) == str(told.value)


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path):
    file = tmp_path / "a.json"
    write_whole(file, "before")

    def half(target: Path) -> None:
        target.write_text("af")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FileError, match=r"a\.json: cannot write it"):
        write_whole(file, half)
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_permissions_are_those_asked_for(tmp_path: Path):
    write_whole(tmp_path / "secret", b"x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "[" * 100_000])
def test_json_that_is_no_object_is_named(tmp_path: Path, content: str):
    file = tmp_path / "summary.json"
    assert read_json_object(file) is None
    file.write_text(content)
    with pytest.raises(FileError, match=r"summary\.json: holds no"):
        read_json_object(file)
