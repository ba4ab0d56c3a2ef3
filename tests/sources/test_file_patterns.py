"""Names of input files: literal names, patterns, and the mistakes that are made with both."""

import os

import pytest

from jetrep.errors import InputError
from jetrep.sources.chunks import existing_files


@pytest.fixture
def folder(tmp_path):
    for name in ("b_2.root", "b_10.root", "a.parquet", "deep/er/c.root", "deep/d.root", ".hidden.root"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(folder, *names):
    return [file.relative_to(folder).as_posix() for file in existing_files([folder / name for name in names])]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["*.root"], ["b_10.root", "b_2.root"]),
        (["b_?.root"], ["b_2.root"]),
        (["[ab]*"], ["a.parquet", "b_10.root", "b_2.root"]),
        (["**/*.root"], ["b_10.root", "b_2.root", "deep/d.root", "deep/er/c.root"]),
        (["*/d.root"], ["deep/d.root"]),
        (["*"], ["a.parquet", "b_10.root", "b_2.root"]),  # the folder among them is none of the files
        (["deep/*.root", "a.parquet", "b_*"], ["deep/d.root", "a.parquet", "b_10.root", "b_2.root"]),
    ],
)
def test_patterns_stand_for_what_they_match(folder, names, expected):
    assert found(folder, *names) == expected


def test_relative_patterns(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert [str(file) for file in existing_files(["deep/*.root", "a.*"])] == ["deep/d.root", "a.parquet"]
    with pytest.raises(InputError) as complaint:
        existing_files(["deep/x*.root"])
    assert str(complaint.value).startswith(f"deep/x*.root: the pattern matches no file in {folder / 'deep'};")


def test_names_that_look_like_patterns_but_exist_are_names(folder):
    for name in ("a[1].root", "a1.root", "run[2]/a.root", "run[2]/b.root", "run2/z.root"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert found(folder, "a[1].root") == ["a[1].root"]
    assert found(folder, "run[2]/*.root") == ["run[2]/a.root", "run[2]/b.root"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no files are given"),
        (["no.root"], "no.root: does not exist"),
        (["deep"], "deep: is a folder"),
        (["*.hdf5"], r"\*.hdf5: the pattern matches no file in .*; correct"),
        (["nowhere/*.root"], r"nowhere/\*.root: the pattern matches no file in "),
        (["deep*"], "the pattern matches no file"),
        (["b_2.root", "b_*.root"], "b_2.root: is given twice"),
        (["b_2.root", "deep/../b_2.root"], "deep/../b_2.root: is given twice"),
        (["x" * 300], "cannot be looked up"),
        (["a\0b"], "does not exist"),
    ],
)
def test_mistakes_are_named(folder, names, words):
    with pytest.raises(InputError, match=words) as complaint:
        existing_files([folder / name for name in names])
    assert "\n" not in str(complaint.value)


def test_a_link_to_a_file_is_that_file(folder):
    os.symlink(folder / "a.parquet", folder / "again.parquet")
    with pytest.raises(InputError, match=r"again.parquet: is given twice"):
        existing_files([folder / "*.parquet"])
