from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from edgetune import files
from edgetune.errors import InputRefusedError, MissingError


def test_digest_of_a_folder_knows_names_and_content_not_times(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = files.digests_of_folder(tmp_path)
    os.utime(tmp_path / "a" / "x", (1, 1))
    assert files.digests_of_folder(tmp_path) == before
    (tmp_path / "a" / "x").write_text("2")
    assert files.digests_of_folder(tmp_path) != before
    assert list(before) == ["a/x"]


def test_digests_leave_out_top_level_entries_by_name(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "x.json").write_text("1")
    (tmp_path / "y").write_text("2")
    assert list(files.digests_of_folder(tmp_path, ["reports"])) == ["y"]


def test_a_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("/etc/passwd")
    with pytest.raises(InputRefusedError, match="a link or special file"):
        files.list_files(tmp_path)


@pytest.mark.parametrize("relative", ["../x", "/etc/passwd", "a/../../x"])
def test_inside_refuses_paths_that_lead_out(tmp_path: Path, relative: str) -> None:
    with pytest.raises(InputRefusedError, match="leads out of"):
        files.inside(tmp_path, relative)


def test_inside_refuses_a_link_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(InputRefusedError, match="leads out of"):
        files.inside(tmp_path, "out/passwd")
    assert files.inside(tmp_path, "in/x") == tmp_path / "in/x"


def test_write_text_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.json"
    files.write_text(target, "old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_settled_folders_have_the_fixed_modes(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir(mode=0o700)
    (folder / "x").write_text("1")
    (folder / "x").chmod(0o777)
    files.settle_folder(folder)
    assert stat.S_IMODE((folder / "x").stat().st_mode) == 0o644
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.parametrize("can_exchange", [True, False])
def test_replace_folder_puts_the_new_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda _new, _place: False)
    for name, text in (("old", "1"), ("new", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(text)
    files.replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "x").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_need_space_says_how_much_is_missing(tmp_path: Path) -> None:
    files.need_space(tmp_path / "not" / "yet", 1, "a build")
    with pytest.raises(MissingError, match=r"a build needs about 1000000000\.00 GB"):
        files.need_space(tmp_path, 10**18, "a build")


def test_json_without_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.dump_json({"x": float("nan")})
    (tmp_path / "x").write_text("{")
    with pytest.raises(InputRefusedError, match="not valid JSON"):
        files.read_json(tmp_path / "x")
    with pytest.raises(InputRefusedError, match="no such file"):
        files.read_json(tmp_path / "y")


def test_out_of_space_is_found_through_causes() -> None:
    error = RuntimeError("wrapped")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    assert files.is_out_of_space(error)
    assert not files.is_out_of_space(ValueError("other"))
