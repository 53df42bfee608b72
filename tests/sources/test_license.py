"""A license is what the folder says, or "not stated" with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.sources.license import License, read_license

APACHE = "\n\n                Apache License\n          Version 2.0, January 2004\n   more"
NOTHING = "no license in README.md or configuration, and no LICENSE file"


@pytest.mark.parametrize(
    ("files", "name", "source"),
    [
        ({"README.md": "---\nlicense: apache-2.0\n---\n# A"}, "apache-2.0", "README.md"),
        ({"README.md": "\ufeff---\r\nlicense: mit\r\n---\r\n"}, "mit", "README.md"),
        ({"README.md": "---\nlicense: [mit, apache-2.0]\n---"}, "mit, apache-2.0", "README.md"),
        (
            {"README.md": "---\nlicense: other\nlicense_name: acme-1\n---"},
            "acme-1",
            "README.md",
        ),
        ({"README.md": "---\nlicense: other\n---"}, "other", "README.md"),
        ({"README.md": "license: mit", "LICENSE": "MIT License\n"}, "MIT License", "LICENSE"),
        ({"LICENSE": APACHE}, "Apache License Version 2.0, January 2004", "LICENSE"),
        ({"config.json": '{"license": "gemma"}'}, "gemma", "config.json"),
        (
            {"README.md": "---\nlicense: mit\n---", "LICENSE": APACHE},
            "mit",
            "README.md",
        ),
        ({"README.md": "---\nlicense: [\n---", "LICENSE": APACHE.strip()},
         "Apache License Version 2.0, January 2004", "LICENSE"),
    ],
)  # fmt: skip
def test_what_is_stated(tmp_path: Path, files: dict[str, str], name: str, source: str) -> None:
    for file, text in files.items():
        (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    assert read_license(tmp_path) == License(name, source)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, NOTHING),
        ({"README.md": "# No front matter\nlicense: mit"}, NOTHING),
        ({"README.md": "---\ntags: [a]\n---"}, NOTHING),
        ({"README.md": "---\nlicense: mit\n"}, NOTHING),
        ({"LICENSE": " \n"}, NOTHING),
        ({"config.json": "[]"}, NOTHING),
        ({"README.md": "---\n a: [\n---"}, "README.md: its front matter is not YAML"),
        ({"README.md": "---\n!!python/object:os.system {}\n---"},
         "README.md: its front matter is not YAML"),
    ],
)  # fmt: skip
def test_what_is_not_stated(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    for file, text in files.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_license(tmp_path) == License(None, None, reason)


def test_a_name_is_one_short_line(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("a\x1b[2J" + "b" * 900)
    found = read_license(tmp_path).name
    assert found is not None
    assert found.isprintable()
    assert len(found) == 120
