import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobjax.config import BadInputError
from blobjax.config.schema import Source
from blobjax.data import files

pytestmark = pytest.mark.smoke


def found(path: Path) -> list[str]:
    """The files of a source, relative to where the fixed part of the pattern ends."""
    root = str(path).partition("*")[0]
    return [str(each).removeprefix(root) for each in files.find(Source(path=str(path)), "mine").paths]


def complaints(path: Path) -> tuple[str, ...]:
    with pytest.raises(BadInputError) as caught:
        files.find(Source(path=str(path)), "mine")
    return caught.value.problems


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.md", ".hidden/g.txt", "b/.h.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_patterns_match_what_the_standard_library_says(tree, monkeypatch):
    import glob

    monkeypatch.chdir(tree)
    (tree / "[x]").mkdir()
    (tree / "[x]" / "y.txt").touch()
    for base in ("", f"{tree}/", "./", "b/../"):
        for pattern in (
            *(
                "*.txt",
                "**/*.txt",
                "**",
                "b/**",
                "b/**/*.txt",
                "**/d/*",
                "**/b/**/*.txt",
                "?/*.txt",
                "[ab]/*",
                "*/d/e.*",
            ),
            *(".hidden/*", "**/.h*", ".*/*.txt", "b/d/e.txt", "[[]x]/*", "**/**/e.txt", "a.txt/*", "*/nothing/*"),
        ):
            expected = {path for path in map(Path, glob.glob(base + pattern, recursive=True)) if path.is_file()}
            if expected:
                assert files.find(Source(path=base + pattern), "mine").paths == sorted(expected), base + pattern
            else:
                assert "matches no file" in complaints(Path(base + pattern))[0]


def test_links_in_a_circle_do_not_multiply_the_data(tree):
    (tree / "b" / "up").symlink_to(tree)
    (tree / "b" / "here").symlink_to(".")
    (tree / "0").symlink_to("b")
    (tree / "0.txt").symlink_to("a.txt")
    assert found(tree / "**" / "*.txt") == ["a.txt", "b/c.txt", "b/d/e.txt"]


def test_links_that_lead_elsewhere_are_followed(tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.txt").touch()
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    (tree / "one.txt").symlink_to(tmp_path / "elsewhere" / "x.txt")
    os.link(tree / "a.txt", tree / "hard.txt")
    # The file that two links lead to counts once, under its shorter name; a hard link is a file of its own.
    assert found(tree / "**" / "*.txt") == ["a.txt", "b/c.txt", "b/d/e.txt", "hard.txt", "one.txt"]


def test_links_that_lead_nowhere_are_named(tree):
    (tree / "b" / "gone.txt").symlink_to("nowhere")
    (tree / "circle.txt").symlink_to("circle.txt")
    (tree / "other.md").symlink_to("nowhere")  # not matched
    first, second = complaints(tree / "**" / "*.txt")
    assert f"{tree / 'b' / 'gone.txt'} is a link to 'nowhere', which does not exist; mend or remove it" in first
    assert f"{tree / 'circle.txt'} cannot be read: Too many levels of symbolic links" in second
    (line,) = complaints(tree / "b" / "gone.txt")
    assert "is a link to 'nowhere', which does not exist" in line
    assert "folder" not in line
    for n in range(20):
        (tree / f"{n}.txt").symlink_to("nowhere")
    assert len(complaints(tree / "**" / "*.txt")) == 10
    assert complaints(tree / "**" / "*.txt")[-1].endswith("(and 12 more)")


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder in which permissions count: for root they do not, so this test is somebody else for a while."""
    root = Path(tempfile.mkdtemp(prefix="blobjax-test-"))
    root.chmod(0o777)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield root
    os.seteuid(before)
    for folder in root.rglob("*"):
        folder.chmod(0o700)
    shutil.rmtree(root)


def test_what_cannot_be_read_is_named(as_nobody):
    for name in ("open", "locked"):
        (as_nobody / name).mkdir()
        (as_nobody / name / "a.txt").write_text("x")
    (as_nobody / "secret.txt").write_text("x")
    assert len(found(as_nobody / "**" / "*.txt")) == 3
    (as_nobody / "secret.txt").chmod(0)
    (line,) = complaints(as_nobody / "**" / "*.txt")
    assert f"matches {as_nobody / 'secret.txt'}" in line or f"{as_nobody / 'secret.txt'} cannot be read" in line
    assert "Permission denied" in complaints(as_nobody / "secret.txt")[0]
    (as_nobody / "secret.txt").unlink()
    for mode in (0o000, 0o400, 0o100):  # neither listed nor entered, listed only, entered only
        (as_nobody / "locked").chmod(mode)
        for pattern in ("**/*.txt", "*/*.txt"):
            (line,) = complaints(as_nobody / pattern)
            assert f"{as_nobody / 'locked'}" in line
            assert "cannot be read: Permission denied" in line


def test_what_is_no_file_is_skipped_with_a_word(tree):
    os.mkfifo(tree / "pipe")
    (tree / "z").mkdir()
    result = files.find(Source(path=str(tree / "*")), "mine")
    assert result.paths == [tree / "a.txt"]
    assert result.skipped == [f"2 directories ({tree / 'b'}, {tree / 'z'})", f"1 FIFO ({tree / 'pipe'})"]
    assert "is a FIFO; give a file" in complaints(tree / "pipe")[0]
    assert "is a folder; give the files in it" in complaints(tree)[0]
    assert "matches no file, only 1 FIFO" in complaints(tree / "p*")[0]


def test_names_that_cannot_be(tmp_path):
    assert "cannot be the name of a file" in complaints(Path("a\0b"))[0]
    assert "data.sources.mine.path '~no-such-user/x'" in complaints(Path("~no-such-user/x"))[0]
