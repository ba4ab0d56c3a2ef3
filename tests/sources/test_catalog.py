"""The catalog of public data sets: complete, well-formed, and usable without a network."""

import importlib
import io
import json
import re
import socket
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import jetrep
from jetrep import cli
from jetrep.sources.cache import Folder, check_name, data_folder, natural
from jetrep.sources.catalog import CATALOG, data_set, data_sets
from jetrep.sources.records import HOSTS, address_of, page_of
from jetrep.sources.registry import SOURCES
from jetrep.store import catalog_verbs

NAMES = list(data_sets())
# The sources of public data sets; the others are formats of files.
PUBLIC = set(SOURCES) - {"pfnano", "weaver", "arrays", "mapped"}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No test here may open a connection."""

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("JETREP_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


class Strict(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not a value that is lost."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), Counter(keys).most_common(1)
        return super().construct_mapping(node, deep)


def test_the_file_comes_with_the_package_and_no_key_stands_twice():
    text = (files("jetrep.sources") / CATALOG).read_text(encoding="utf-8")
    content = yaml.load(text, Strict)
    assert list(content["datasets"]) == NAMES
    groups = [group for fields in content["datasets"].values() for group in fields["files"]]
    for group in groups:
        # Every checksum has a public source, or is taken from the record; never neither.
        assert ("md5" in group) == ("md5_from" in group)
        assert ("names" in group) == (group.get("checksum_from") == "record")
        assert ("md5" in group) != ("names" in group)


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_is_complete(name):
    chosen = data_set(name)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert chosen.source in SOURCES
    assert chosen.title
    assert chosen.what
    assert chosen.notes
    assert chosen.url.startswith("https://")
    assert chosen.licence
    assert isinstance(chosen.licence_confirmed, bool)
    assert chosen.licence_from
    assert chosen.cite
    for reference in chosen.cite:
        assert re.fullmatch(r"doi:10\.\d{4,}/\S+|arXiv:\d{4}\.\d{4,5}", reference)
    assert chosen.jets is None or chosen.jets > 0
    assert chosen.gb is None or chosen.gb_from
    assert isinstance(chosen.classes, int) or len(set(chosen.classes)) == len(chosen.classes)
    assert chosen.entries or chosen.unlisted


@pytest.mark.parametrize("name", NAMES)
def test_files_are_unique_and_checksums_well_formed(name):
    chosen = data_set(name)
    names = [entry.name for entry in chosen.entries]
    assert len(names) == len(set(names))
    places = [str(Folder(Path()).unpacked(name)) for name in names]
    assert len(places) == len(set(places))
    sums = [entry.md5 for entry in chosen.entries if entry.md5 is not None]
    assert len(sums) == len(set(sums)), "two files with the same content"
    for entry in chosen.entries:
        assert check_name(entry.name, origin=name) == entry.name
        assert entry.md5 is None or re.fullmatch("[0-9a-f]{32}", entry.md5)
        assert (entry.md5 is None) == (entry.checksum_from == "record")
        assert entry.split in (None, "train", "val", "test")
        assert (entry.split is None) == (chosen.splits is None)
        assert (entry.unpack is not None) == bool(re.search(r"\.tar(\.gz)?$", entry.name))
        for address in (page_of(entry.record), address_of(entry.record, entry.name)):
            assert address.startswith("https://")
    for record in (*(entry.record for entry in chosen.entries), *chosen.unlisted):
        kind, _, number = record.partition(":")
        assert kind in HOSTS
        assert re.fullmatch(r"\d+" if kind != "huggingface" else r"[\w-]+/[\w-]+", number)


def test_every_public_source_is_the_name_of_a_data_set():
    """``jetrep prepare SOURCE`` looks for the files of the data set of this name."""
    assert {name for name in NAMES if name in SOURCES} == PUBLIC
    assert {data_set(name).source for name in NAMES} == PUBLIC
    for name in PUBLIC:
        assert data_set(name).source == name


def counts(name):
    chosen = data_set(name)
    return dict(Counter(entry.split for entry in chosen.entries))


@pytest.mark.parametrize("name", NAMES)
def test_classes_are_those_of_the_reader(name):
    chosen = data_set(name)
    module = importlib.import_module(SOURCES[chosen.source][0])
    if isinstance(chosen.classes, int):
        assert chosen.classes == len(module.CLASSES_188)
    else:
        theirs = getattr(module, "CLASSES", ())
        assert [label for label in theirs if label in chosen.classes] == list(chosen.classes)


def test_the_page_in_the_documentation_says_the_same():
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    rows = {row[1]: row[0] for row in re.findall(r"^(\| `([a-z0-9-]+)` \|.*)$", page, re.MULTILINE)}
    assert set(rows) == set(NAMES)
    for name, row in rows.items():
        chosen = data_set(name)
        for fact in (chosen.source, chosen.licence, *(reference.partition(":")[2] for reference in chosen.cite)):
            assert fact in row, (name, fact)
        if chosen.jets is not None:
            assert f"{chosen.jets:,}" in row


def test_numbers_of_files():
    assert counts("jetclass") == {"train": 10, "val": 1, "test": 1}
    assert counts("jetclass2") == {"train": 1340, "val": 335, "test": 335}
    assert counts("toptagging") == {"train": 1, "val": 1, "test": 1}
    assert counts("quarkgluon") == counts("quarkgluon-herwig-bc") == {"train": 16, "val": 2, "test": 2}
    assert counts("mod") == {None: 18}
    assert counts("mod-sim") == {None: 1 + 24 + 73 + 78 + 79 + 40 + 40 + 20}
    assert counts("mod-gen") == {None: 1 + 24 + 74 + 79 + 79 + 40 + 40 + 20}
    assert counts("omnifold") == {None: 17}


def test_numbers_of_jets_agree_with_numbers_of_files():
    for name in NAMES:
        if data_set(name).source in ("jetclass2", "quarkgluon"):
            assert data_set(name).jets == 100_000 * len(data_set(name).entries)
    train = [entry.name for entry in data_set("jetclass2").entries if entry.split == "train"]
    assert Counter(name.partition("_")[0] for name in train) == {"Res2P": 200, "Res34P": 860, "QCD": 280}
    assert train[0] == "Res2P_0000.parquet"
    assert train[-1] == "QCD_0279.parquet"


def test_known_checksums():
    """One of each source, read from it once more."""
    sums = {entry.name: entry.md5 for name in NAMES for entry in data_set(name).entries}
    assert sums["JetClass_Pythia_val_5M.tar"] == "7235ccb577ed85023ea3ab4d5e6160cf"
    assert sums["QG_jets.npz"] == "f5d052f10a79c6e8b9382637aca0ef52"
    assert sums["QG_jets_herwig_0.npz"] == "a9de310c35c5a83ea592ef93070ff2f3"
    assert sums["QG_jets_withbc_19.npz"] == "5fd9bcfa8baafb6b3f6efb5114420976"
    assert sums["CMS_Jet300_pT375-infGeV_0_compressed.h5"] == "f1d2d4013e1e0026b4f8cc84b9d5f944"
    assert sums["SIM470_Jet300_pT375-infGeV_72_compressed.h5"] == "6d716fb5eefdc6117c3b69bdbe57f06b"
    assert sums["Herwig_Zjet_pTZ-200GeV_0.npz"] == "3aba0470ce232c6ad9a091aaacb675d7"


def test_a_data_set_without_a_split_is_all_training():
    chosen = data_set("jetnet")
    folder = chosen.folder()
    assert chosen.select(folder, "train") == chosen.select(folder, "all") == list(chosen.entries)
    with pytest.raises(jetrep.InputError, match=r"no split 'test'; its authors made no split.*train, all"):
        chosen.select(folder, "test")


def test_splits_share_no_file_and_leave_none_out():
    for name in NAMES:
        chosen = data_set(name)
        folder = chosen.folder()
        parts = [entry for split in {entry.split or "train" for entry in chosen.entries}
                 for entry in chosen.select(folder, split)]  # fmt: skip
        assert Counter(parts) == Counter(chosen.entries)


def test_the_folder_of_all_data_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("JETREP_DATA", str(tmp_path / "here"))
    assert data_folder() == tmp_path / "here"
    assert data_folder(tmp_path / "there") == tmp_path / "there"
    monkeypatch.delenv("JETREP_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder().is_relative_to(tmp_path)
    assert data_folder().name == "jetrep"


def test_numbers_in_names_are_sorted_as_numbers():
    assert sorted(["b_10", "b_9", "a_10b2", "a_10b10", "b"], key=natural) == ["a_10b2", "a_10b10", "b", "b_9", "b_10"]


@pytest.mark.parametrize("name", ["a.h5", "a-b_c 1.tar.gz", "Ünï.npz"])
def test_names_that_are_fine(name):
    assert check_name(name, origin="here") == name


def test_datasets_lists_all_without_a_network(capsys):
    assert cli.main(["datasets"]) == 0
    told = capsys.readouterr().out
    for name in NAMES:
        assert name in told
    for word in ("125 M", "880 k", "arXiv:2202.03772", "MIT", "0/12", "0/?"):
        assert word in told


@pytest.mark.parametrize(("width", "shown", "hidden"), [(80, "CC-BY-4.0", "doi:"), (110, "doi:10.5281", "Delphes")])
def test_in_a_narrow_terminal_whole_columns_are_left_out(width, shown, hidden):
    chosen = [data_set(name) for name in NAMES]
    facts = [catalog_verbs._facts(each, each.folder()) for each in chosen]
    console = Console(width=width, file=io.StringIO())
    console.print(catalog_verbs._table(chosen, facts, width))
    text = console.file.getvalue()
    assert shown in text
    assert hidden not in text
    assert all(name in text for name in NAMES)


def test_datasets_as_json(capsys):
    assert cli.main(["datasets", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [fact["name"] for fact in facts] == NAMES
    for fact in facts:
        assert {"jets", "classes", "licence", "licence_confirmed", "cite", "folder", "prepare"} <= set(fact)
        assert {file["state"] for file in fact["files"]} <= {"absent"}


@pytest.mark.parametrize("name", NAMES)
def test_datasets_shows_one_in_detail(name, capsys):
    assert cli.main(["datasets", name, "--all-files"]) == 0
    told = capsys.readouterr().out
    for entry in data_set(name).entries[::50]:
        assert entry.name in told
        assert entry.md5 is None or entry.md5 in told
    assert f"jetrep download {name}" in told
    assert f"jetrep prepare {name} " in told


def test_datasets_looks_at_what_is_here(offline, capsys):
    folder = offline / "toptagging"
    folder.mkdir(parents=True)
    (folder / "train.h5").write_bytes(b"jets")
    (folder / "val.h5.part").write_bytes(b"je")
    facts = jetrep.datasets("toptagging")
    capsys.readouterr()
    assert [file["state"] for file in facts[0]["files"]] == ["not verified", "partial", "absent"]


def test_datasets_elsewhere(tmp_path, capsys):
    facts = jetrep.datasets("jetnet", to=tmp_path / "elsewhere", json=True)
    assert facts[0]["folder"] == str(tmp_path / "elsewhere" / "jetnet")
    assert json.loads(capsys.readouterr().out)[0]["folder"] == facts[0]["folder"]
