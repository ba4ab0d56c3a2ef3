"""Downloads against a server that plays Zenodo. Nothing here reaches beyond this machine."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
from record_server import md5, running, sha256

from jetrep import cli
from jetrep.errors import InputError
from jetrep.sources import catalog, download, records, transfer
from jetrep.sources.cache import CHECKSUMS, MARKER, Folder, State
from jetrep.sources.catalog import DataSet, Entry, cached_files
from jetrep.sources.download import fetch, verify
from jetrep.sources.transfer import Http

CONTENT = np.random.default_rng(7).bytes(3_000_000)
OTHER = np.random.default_rng(8).bytes(50_000)
FILE = "/records/1/files/train.h5"


@pytest.fixture
def server(monkeypatch):
    with running() as server:
        monkeypatch.setattr(records, "HOSTS", dict.fromkeys(records.HOSTS, server.url))
        server.record(1, {"train.h5": CONTENT, "test.h5": OTHER})
        yield server


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """The folder of all data sets; no proxy, no mirror."""
    monkeypatch.setenv("JETREP_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("JETREP_MIRROR", raising=False)
    return tmp_path / "data"


@pytest.fixture
def waits():
    return []


@pytest.fixture
def http(waits):
    return Http(attempts=4, connect_timeout=5, read_timeout=5, wait=waits.append)


def data_set(*entries, name="jets", unlisted=None):
    return DataSet(
        name=name,
        title="Jets",
        what="jets",
        source="arrays",
        jets=1,
        classes=("qcd", "top"),
        gb=None,
        gb_from=None,
        licence="MIT",
        licence_confirmed=True,
        licence_from="here",
        cite=("arXiv:0000.00000",),
        url="https://example.org",
        splits="official",
        notes="",
        entries=entries,
        unlisted=unlisted or {},
    )


def entry(name="train.h5", content=CONTENT, split="train", record="zenodo:1", unpack=None):
    known = None if content is None else md5(content)
    return Entry(name, record, split, known, "here" if known else "record", unpack)


JETS = data_set(entry(), entry("test.h5", OTHER, "test"))
ASKED = data_set(entry(content=None), entry("test.h5", None, "test"))


@pytest.fixture
def known(monkeypatch):
    """Puts data sets into the catalog."""

    def put(*chosen):
        monkeypatch.setattr(catalog, "_load", lambda: {each.name: each for each in chosen})

    return put


def left(data):
    """What stands in the folder of the data set, hidden files aside."""
    return sorted(path.name for path in (data / "jets").iterdir() if not path.name.startswith("."))


def test_files_arrive_and_are_not_asked_for_twice(server, http, data):
    first = fetch(JETS, http=http, quiet=True)
    assert [file.read_bytes() for file in first.files] == [CONTENT, OTHER]
    assert first.fetched == ["train.h5", "test.h5"]
    assert left(data) == ["test.h5", "train.h5"]
    server.log.clear()
    again = fetch(JETS, http=http, quiet=True)
    assert again.files == first.files
    assert again.fetched == []
    assert server.log == []


def test_only_the_split_and_the_names_that_are_asked_for(server, http, data):
    fetch(JETS, split="test", http=http, quiet=True)
    assert left(data) == ["test.h5"]
    fetch(JETS, patterns=["tr*"], http=http, quiet=True)
    assert left(data) == ["test.h5", "train.h5"]
    with pytest.raises(InputError, match="split 'val'"):
        fetch(JETS, split="val", http=http, quiet=True)
    with pytest.raises(InputError, match="'vall\\*' fits no file"):
        fetch(JETS, patterns=["vall*"], http=http, quiet=True)


def test_several_files_at_once(server, http):
    contents = {f"part{i}.h5": np.random.default_rng(i).bytes(20_000 + i) for i in range(12)}
    server.record(2, contents)
    many = data_set(*(entry(name, content, record="zenodo:2") for name, content in contents.items()))
    done = fetch(many, jobs=4, http=http, quiet=True)
    assert [file.read_bytes() for file in done.files] == list(contents.values())


def test_a_broken_transfer_is_resumed_where_it_broke(server, http, waits):
    server.faults[FILE] = [{"stop_after": 1_200_000}, {"stop_after": 1_300_000}]
    done = fetch(JETS, split="train", http=http, quiet=True)
    assert done.files[0].read_bytes() == CONTENT
    assert server.asked(FILE) == [None, "bytes=1200000-", "bytes=2500000-"]
    assert waits == [1.0, 1.0]  # both attempts brought more than a mebibyte


def test_a_transfer_given_up_is_resumed_by_the_next_call(server, http, data):
    server.faults[FILE] = [{"stop_after": 700_000}] + [{"status": 503}] * 3
    with pytest.raises(InputError, match="status 503"):
        fetch(JETS, split="train", http=http, quiet=True)
    assert left(data) == ["train.h5.part"]
    assert (data / "jets" / "train.h5.part").read_bytes() == CONTENT[:700_000]
    server.log.clear()
    assert fetch(JETS, split="train", http=http, quiet=True).files[0].read_bytes() == CONTENT
    assert server.asked(FILE) == ["bytes=700000-"]
    assert left(data) == ["train.h5"]


def test_a_server_that_knows_no_ranges_starts_anew(server, http):
    server.knows_ranges = False
    server.faults[FILE] = [{"stop_after": 1_200_000}]
    assert fetch(JETS, split="train", http=http, quiet=True).files[0].read_bytes() == CONTENT
    assert server.asked(FILE) == [None, "bytes=1200000-"]


def test_a_server_that_never_gets_to_the_end_is_given_up(server, http):
    server.knows_ranges = False
    server.faults[FILE] = [{"stop_after": 1_500_000}] * 50
    with pytest.raises(InputError, match="broke off"):
        fetch(JETS, split="train", http=http, quiet=True)
    assert len(server.log) <= 6


def test_a_server_that_sends_another_part_is_asked_from_the_start(server, http):
    server.faults[FILE] = [{"stop_after": 1_200_000}, {"start": 5}]
    assert fetch(JETS, split="train", http=http, quiet=True).files[0].read_bytes() == CONTENT
    assert server.asked(FILE) == [None, "bytes=1200000-", None]


@pytest.mark.parametrize("kept", [OTHER, CONTENT + b"more"])
def test_a_partial_file_of_another_version_is_dropped(server, http, data, kept):
    (data / "jets").mkdir(parents=True)
    (data / "jets" / "train.h5.part").write_bytes(kept)
    assert fetch(JETS, split="train", http=http, quiet=True).files[0].read_bytes() == CONTENT


def test_a_partial_file_that_is_whole_is_taken(server, http, data):
    (data / "jets").mkdir(parents=True)
    (data / "jets" / "train.h5.part").write_bytes(CONTENT)
    assert fetch(JETS, split="train", http=http, quiet=True).files[0].read_bytes() == CONTENT
    assert server.asked(FILE) == ["bytes=3000000-"]


def test_a_wrong_checksum_is_refused_and_nothing_is_left(server, http, data):
    wrong = data_set(entry(content=OTHER))
    with pytest.raises(InputError) as refused:
        fetch(wrong, http=http, quiet=True)
    assert md5(CONTENT) in str(refused.value)
    assert md5(OTHER) in str(refused.value)
    assert "--mirror" in str(refused.value)
    assert left(data) == []


def test_a_disk_that_changes_what_is_written_is_noticed(server, http, data, monkeypatch):
    link = os.link

    def bad_disk(part, output):
        with Path(part).open("r+b") as stream:
            stream.write(b"\0\0\0\0")
        link(part, output)

    monkeypatch.setattr(os, "link", bad_disk)
    with pytest.raises(InputError, match="not on the disk as it was received"):
        fetch(JETS, split="train", http=http, quiet=True)
    assert "train.h5" not in left(data)


def test_a_missing_file_names_its_address_and_the_way_out(server, http, waits):
    del server.content[FILE]
    with pytest.raises(InputError) as refused:
        fetch(JETS, http=http, quiet=True)
    assert f"{server.url}{FILE}" in str(refused.value)
    assert "404" in str(refused.value)
    assert "--mirror" in str(refused.value)
    assert waits == []


def test_a_server_that_asks_to_wait_is_obeyed(server, http, waits):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    server.faults[FILE] = [
        {"status": 429, "headers": {"Retry-After": "7"}},
        {"status": 503, "headers": {"Retry-After": later}},
    ]
    assert fetch(JETS, split="train", http=http, quiet=True).files[0].read_bytes() == CONTENT
    assert waits[0] == 7.0
    assert 30 < waits[1] <= 50


def test_a_server_that_wants_long_peace_gets_it(server, http, waits):
    server.faults[FILE] = [{"status": 429, "headers": {"Retry-After": "86400"}}]
    with pytest.raises(InputError, match="86400 s; give the same command later"):
        fetch(JETS, split="train", http=http, quiet=True)
    assert waits == []


def test_retries_are_bounded_and_further_and_further_apart(server, waits):
    server.faults[FILE] = [{"status": 500}] * 100
    http = Http(attempts=6, first_wait=1.0, longest_wait=5.0, wait=waits.append)
    with pytest.raises(InputError, match=r"status 500.*6 times in a row"):
        fetch(JETS, split="train", http=http, quiet=True)
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert len(server.log) == 6


def test_a_server_that_is_not_there(http, monkeypatch, waits):
    with running() as gone:
        pass
    monkeypatch.setattr(records, "HOSTS", {"zenodo": gone.url})
    with pytest.raises(InputError, match=r"does not answer.*--mirror"):
        fetch(JETS, http=http, quiet=True)
    assert len(waits) == 3


def test_a_server_that_falls_silent_is_asked_again(server, waits):
    hold = threading.Event()
    server.faults[FILE] = [{"stop_after": 100_000, "hold": hold}]
    http = Http(attempts=2, read_timeout=0.3, wait=waits.append)
    try:
        assert fetch(JETS, split="train", http=http, quiet=True).files[0].read_bytes() == CONTENT
    finally:
        hold.set()
    assert server.asked(FILE) == [None, "bytes=65536-"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses(server, http, status, waits):
    server.faults[FILE] = [{"status": status}]
    with pytest.raises(InputError, match=f"status {status}"):
        fetch(JETS, split="train", http=http, quiet=True)
    assert waits == []


def test_checksums_that_the_catalog_does_not_know_come_from_the_record(server, http, data, known):
    done = fetch(ASKED, http=http, quiet=True)
    assert [file.read_bytes() for file in done.files] == [CONTENT, OTHER]
    said = json.loads((data / "jets" / CHECKSUMS).read_text())
    assert said["train.h5"]["checksum"] == "md5:" + md5(CONTENT)
    assert said["train.h5"]["bytes"] == len(CONTENT)
    assert said["train.h5"]["origin"] == f"{server.url}/api/records/1"
    server.log.clear()
    fetch(ASKED, http=http, quiet=True)
    assert server.log == []
    known(ASKED)
    assert cached_files("jets", "all") == done.files


def test_a_record_whose_checksum_the_file_does_not_have(server, http, data):
    server.content[FILE] = OTHER
    with pytest.raises(InputError, match=f"{md5(OTHER)}, not {md5(CONTENT)}"):
        fetch(ASKED, split="train", http=http, quiet=True)
    assert left(data) == [CHECKSUMS]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"<html>maintenance</html>", "not JSON"),
        (b"[]", "lists no files"),
        (b'{"files": []}', "lists no files"),
        (b'{"files": [3]}', "a file of the name None"),
        (b'{"files": [{"key": "train.h5", "checksum": "adler:1"}]}', "no MD5 or SHA-256 of train.h5"),
        (b'{"files": [{"key": "train.h5", "checksum": null}]}', "no MD5 or SHA-256 of train.h5"),
        (json.dumps({"files": [{"key": "x.h5", "checksum": "md5:" + "0" * 32}]}).encode(), "no file of the name train"),
    ],
)
def test_records_that_answer_otherwise(server, http, answer, complaint):
    server.put("/api/records/1", answer)
    with pytest.raises(InputError, match=complaint):
        fetch(ASKED, split="train", http=http, quiet=True)


@pytest.mark.parametrize("name", ["../evil.h5", "/evil.h5", "a/../../evil.h5", "..", ".hidden", "a\\b.h5", "a\nb", ""])
def test_names_that_lead_elsewhere_are_refused(server, http, data, name):
    server.record(5, {name: CONTENT})
    taken = data_set(unlisted={"zenodo:5": ("*",)})
    with pytest.raises(InputError, match="could be written to another place"):
        fetch(taken, http=http, quiet=True)
    assert not list(data.parent.rglob("*evil*"))


def test_names_too_can_come_from_the_record(server, http, data, known):
    files = {f"RunG_{i}.h5": np.random.default_rng(i).bytes(1000) for i in (0, 1, 2, 10)}
    server.record(5, files | {"README.md": b"read me"})
    taken = data_set(unlisted={"zenodo:5": ("*.h5",)})
    done = fetch(taken, http=http, quiet=True)
    assert [file.name for file in done.files] == ["RunG_0.h5", "RunG_1.h5", "RunG_2.h5", "RunG_10.h5"]
    server.log.clear()
    fetch(taken, http=http, quiet=True)
    assert server.log == []
    known(taken)
    assert cached_files("jets") == done.files


def test_hugging_face_gives_sha256_in_pages(server, http, data):
    names = {"Res2P_0000.parquet": CONTENT, "QCD_0000.parquet": OTHER}
    tree = "/api/datasets/group/jets/tree/main"
    pages = [
        [{"type": "directory", "path": "data"}, {"type": "file", "path": "README.md", "oid": "1", "size": 3}],
        *([{"type": "file", "path": f"data/{n}", "lfs": {"oid": sha256(c), "size": len(c)}}] for n, c in names.items()),
    ]
    for i, page in enumerate(pages):
        server.put(f"{tree}?recursive=true" + (f"&cursor={i}" if i else ""), json.dumps(page).encode())
        if i + 1 < len(pages):
            following = f'<{server.url}{tree}?recursive=true&cursor={i + 1}>; rel="next"'
            server.faults[tree].append({"headers": {"Link": following}})
    for name, content in names.items():
        server.put(f"/datasets/group/jets/resolve/main/data/{name}", content)
    chosen = data_set(*(entry(name, None, record="huggingface:group/jets") for name in names))
    done = fetch(chosen, http=http, quiet=True)
    assert [file.read_bytes() for file in done.files] == list(names.values())
    said = json.loads((data / "jets" / CHECKSUMS).read_text())
    assert {name: entry["checksum"] for name, entry in said.items()} == {
        name: "sha256:" + sha256(content) for name, content in names.items()
    }


def test_a_mirror_is_asked_in_place_of_the_record(server, http, monkeypatch):
    server.put("/copy/jets/train.h5", CONTENT)
    fetch(JETS, split="train", mirror=f"{server.url}/copy/", http=http, quiet=True)
    assert [path for path, _ in server.log] == ["/copy/jets/train.h5"]
    server.put("/other/jets/test.h5", OTHER)
    monkeypatch.setenv("JETREP_MIRROR", f"{server.url}/other")
    fetch(JETS, split="test", http=http, quiet=True)
    assert server.log[-1][0] == "/other/jets/test.h5"


def test_a_mirror_gives_checksums_where_the_record_does_not_answer(server, http, data, waits):
    fetch(ASKED, http=http, quiet=True)
    for file in ("train.h5", "test.h5", CHECKSUMS):
        server.put(f"/copy/jets/{file}", (data / "jets" / file).read_bytes())
    shutil.rmtree(data)
    server.log.clear()
    server.faults["/api/records/1"] = [{"status": 503}] * 9
    done = fetch(ASKED, mirror=f"{server.url}/copy", http=http, quiet=True)
    assert [file.read_bytes() for file in done.files] == [CONTENT, OTHER]
    assert waits == []
    assert sorted({path for path, _ in server.log}) == [
        "/api/records/1", "/copy/jets/checksums.json", "/copy/jets/test.h5", "/copy/jets/train.h5"
    ]  # fmt: skip


def test_a_mirror_cannot_pass_off_another_file(server, http, data):
    server.put("/copy/jets/train.h5", OTHER)
    with pytest.raises(InputError, match=f"{md5(OTHER)}, not {md5(CONTENT)}"):
        fetch(JETS, split="train", mirror=f"{server.url}/copy", http=http, quiet=True)
    assert left(data) == []


@pytest.mark.parametrize("mirror", ["ftp://host/x", "host/x", "http://", "file:///etc"])
def test_a_mirror_without_a_web_address_is_refused(http, mirror):
    with pytest.raises(InputError, match=r"mirror.*https://"):
        fetch(JETS, mirror=mirror, http=http, quiet=True)


def test_a_full_disk_is_foreseen(server, http, data, monkeypatch):
    usage = shutil.disk_usage(data.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"needs 0.00 GB more.*free space, or choose another folder with --to"):
        fetch(JETS, split="train", http=http, quiet=True)


def test_a_disk_that_becomes_full_is_one_line_and_the_part_stays(server, http, data, monkeypatch):
    fsync = os.fsync

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer.os, "fsync", full)
    with pytest.raises(InputError, match=r"train.h5.part: cannot be written .No space left.*free space"):
        fetch(JETS, split="train", http=http, quiet=True)
    monkeypatch.setattr(transfer.os, "fsync", fsync)
    server.log.clear()
    assert fetch(JETS, split="train", http=http, quiet=True).files[0].read_bytes() == CONTENT
    assert server.asked(FILE) == ["bytes=3000000-"]


def test_a_folder_that_cannot_be_made(server, http, data):
    data.write_text("a file")
    with pytest.raises(InputError, match=r"cannot be written.*--to or JETREP_DATA"):
        fetch(JETS, http=http, quiet=True)


def test_offline_a_changed_file_is_noticed_and_the_next_download_repairs_it(server, http, data, known, capsys):
    known(JETS)
    done = fetch(JETS, http=http, quiet=True)
    assert cached_files("jets") == [data / "jets" / "train.h5"]
    done.files[0].write_bytes(CONTENT[:-1] + b"x")
    server.log.clear()
    with pytest.raises(InputError, match=r"damaged.*jetrep download jets --split train"):
        cached_files("jets")
    assert server.log == []
    fetch(JETS, http=http, quiet=True)
    assert "is wrong; it is now called train.h5.wrong" in capsys.readouterr().err
    assert done.files[0].read_bytes() == CONTENT
    assert left(data) == ["test.h5", "train.h5"]


def test_offline_damage_that_left_size_and_time_is_found_by_verify(server, http, data):
    file = fetch(JETS, http=http, quiet=True).files[0]
    before = file.stat()
    damaged = bytearray(CONTENT)
    damaged[1000] ^= 1
    file.write_bytes(damaged)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    server.log.clear()
    with pytest.raises(InputError) as refused:
        verify(JETS, quiet=True)
    assert f"MD5 is {md5(damaged)}, not {md5(CONTENT)}; it is now called train.h5.wrong" in str(refused.value)
    assert "jetrep download jets --files train.h5" in str(refused.value)
    assert server.log == []
    assert left(data) == ["test.h5", "train.h5.wrong"]
    assert verify(JETS, quiet=True) == {"train.h5": State.ABSENT, "test.h5": State.RIGHT}


def test_files_that_were_put_there_by_hand_are_verified(server, http, data, known):
    known(JETS, replace(ASKED, name="asked"))
    for folder in ("jets", "asked"):
        (data / folder).mkdir(parents=True)
        (data / folder / "train.h5").write_bytes(CONTENT)
    assert cached_files("jets") == [data / "jets" / "train.h5"]
    with pytest.raises(InputError, match="checksum is not known yet"):
        cached_files("asked")
    done = fetch(replace(ASKED, name="asked"), split="train", http=http, quiet=True)
    assert done.kept == ["train.h5"]
    assert server.asked(FILE) == []
    assert cached_files("asked") == [data / "asked" / "train.h5"]


def test_cached_files_says_how_to_get_them(known, data):
    known(JETS)
    with pytest.raises(InputError, match=r"train.h5: is not there; run jetrep download jets --split train$"):
        cached_files("jets")
    with pytest.raises(InputError, match="no split 'val'"):
        cached_files("jets", "val")
    with pytest.raises(InputError, match="no data set is called 'jetts'"):
        cached_files("jetts")


def test_damaged_notes_are_no_obstacle(server, http, data, known):
    known(ASKED)
    fetch(ASKED, http=http, quiet=True)
    (data / "jets" / ".verified.json").write_text("{")
    assert len(cached_files("jets", "all")) == 2
    (data / "jets" / CHECKSUMS).write_text("[1]")
    with pytest.raises(InputError, match=r"checksums.json: is damaged; remove it"):
        cached_files("jets")


def archive_of(members, mode="w:gz"):
    """A tar file; members are bytes, or TarInfo of what must not be in it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return stream.getvalue()


def packed(server, content, name="train.tar.gz"):
    server.record(3, {name: content})
    return data_set(entry(name, content, record="zenodo:3", unpack="*.root"))


def folder_info(name):
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


MEMBERS = [
    ("train", folder_info("train")),
    ("train/B_10.root", b"ten"),
    ("train/B_9.root", b"nine" * 1000),
    ("./train/A_0.root", b"zero"),
    ("train/README", b"read"),
    ("train/._A_0.root", b"resource fork"),
]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archives_are_unpacked_once(server, http, data, known, mode):
    chosen = packed(server, archive_of(MEMBERS, mode))
    known(chosen)
    done = fetch(chosen, http=http, quiet=True)
    assert [str(file.relative_to(data / "jets")) for file in done.files] == [
        "train/train/A_0.root",
        "train/train/B_9.root",
        "train/train/B_10.root",
    ]
    assert done.files[1].read_bytes() == b"nine" * 1000
    assert left(data) == ["train"]
    assert not list(data.rglob("._*"))
    assert cached_files("jets") == done.files
    server.log.clear()
    assert fetch(chosen, http=http, quiet=True).files == done.files
    assert server.log == []


def test_archives_can_be_kept_and_are_then_the_remedy(server, http, data, known):
    chosen = packed(server, archive_of(MEMBERS))
    known(chosen)
    done = fetch(chosen, keep_archive=True, http=http, quiet=True)
    assert left(data) == ["train", "train.tar.gz"]
    done.files[0].unlink()
    with pytest.raises(InputError, match="not unpacked yet"):
        cached_files("jets")
    server.log.clear()
    assert fetch(chosen, keep_archive=True, http=http, quiet=True).files[0].read_bytes() == b"zero"
    assert server.log == []


def test_unpacked_files_are_verified_without_their_archive(server, http, data, known):
    chosen = packed(server, archive_of(MEMBERS))
    known(chosen)
    file = fetch(chosen, http=http, quiet=True).files[0]
    assert verify(chosen, quiet=True) == {"train.tar.gz": State.RIGHT}
    before = file.stat()
    file.write_bytes(b"Zero")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="unpacked are damaged"):
        verify(chosen, quiet=True)
    file.write_bytes(b"Zero")
    with pytest.raises(InputError, match="wrong"):
        cached_files("jets")
    assert fetch(chosen, http=http, quiet=True).files[0].read_bytes() == b"zero"


def link_info(kind, target, name="train/link.root"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "bad",
    [
        ("../../evil.root", b"x"),
        ("/tmp/evil.root", b"x"),
        ("train/../../evil.root", b"x"),
        ("train/C:evil.root", b"x"),
        ("", link_info(tarfile.SYMTYPE, "/etc/passwd")),
        ("", link_info(tarfile.SYMTYPE, "B_9.root")),
        ("", link_info(tarfile.LNKTYPE, "../../evil.root")),
        ("", link_info(tarfile.CHRTYPE, "")),
        ("", link_info(tarfile.FIFOTYPE, "")),
        ("train/B_9.root", b"once more"),
    ],
    # Names of their own: processes that run tests side by side must agree on them.
    ids=["up", "absolute", "up within", "drive", "symlink out", "symlink", "link out", "device", "pipe", "twice"],
)
def test_archives_with_what_must_not_be_in_them(server, http, data, bad):
    chosen = packed(server, archive_of([*MEMBERS, bad]))
    with pytest.raises(InputError, match=r"train\.tar\.gz"):
        fetch(chosen, http=http, quiet=True)
    assert not list(data.parent.rglob("*evil*"))
    assert [path.name for path in (data / "jets").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    "content",
    [b"no archive", archive_of(MEMBERS)[:-200], archive_of(MEMBERS, "w")[:4000], b""],
    ids=["none", "compressed, cut", "cut", "empty"],
)
def test_archives_that_are_damaged_where_they_come_from(server, http, data, content):
    with pytest.raises(
        InputError, match=r"train\.tar\.gz: (the archive is damaged|cannot be unpacked|the archive holds)"
    ):
        fetch(packed(server, content), http=http, quiet=True)
    assert [path.name for path in (data / "jets").iterdir() if path.is_dir()] == []


def test_a_marker_cannot_lead_out_of_its_folder(server, http, data):
    chosen = packed(server, archive_of(MEMBERS))
    fetch(chosen, http=http, quiet=True)
    file = data / "jets" / "train" / MARKER
    marker = json.loads(file.read_text())
    marker["members"]["../../../secret.root"] = next(iter(marker["members"].values()))
    file.write_text(json.dumps(marker))
    with pytest.raises(InputError, match="another place"):
        Folder(data / "jets").jets("train.tar.gz", "*.root")


def test_what_a_killed_download_left_is_swept_away(server, http, data):
    (data / "jets" / ".train.unpacking" / "x").mkdir(parents=True)
    (data / "jets" / "tmpab12_xyz").write_bytes(b"half")
    chosen = packed(server, archive_of(MEMBERS))
    fetch(chosen, http=http, quiet=True)
    assert left(data) == ["train"]
    assert not (data / "jets" / ".train.unpacking").exists()


def test_one_download_at_a_time(server, http, data, capfd):
    fcntl = pytest.importorskip("fcntl")
    (data / "jets").mkdir(parents=True)
    with (data / "jets" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=fetch, args=(JETS,), kwargs={"http": http, "quiet": True})
        thread.start()
        told = ""
        while "waiting for another download" not in told and thread.is_alive():
            time.sleep(0.01)
            told += capfd.readouterr().err
        assert server.log == []
    thread.join()
    assert left(data) == ["test.h5", "train.h5"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_the_part_is_kept_and_said(server, data, number, code):
    hold = threading.Event()
    path = "/quarkgluon/QG_jets.npz"
    server.put(path, CONTENT)
    server.faults[path] = [{"stop_after": 2_000_000, "hold": hold}]
    command = ["download", "quarkgluon", "--files", "QG_jets.npz", "--mirror", server.url, "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "jetrep", *command], stderr=subprocess.PIPE, text=True)
    part = data / "quarkgluon" / "QG_jets.npz.part"
    try:
        while process.poll() is None and not (part.exists() and part.stat().st_size > 500_000):
            time.sleep(0.02)
        process.send_signal(number)
        time.sleep(0.1)
        hold.set()
        _, told = process.communicate(timeout=30)
    finally:
        hold.set()
        process.kill()
    assert process.returncode == code
    assert f"MB are kept in {part}" in told
    assert "the same command goes on" in told
    assert "Traceback" not in told
    assert CONTENT.startswith(part.read_bytes())


def test_the_verb(server, known, data, capsys, monkeypatch, waits):
    known(JETS)
    monkeypatch.setattr(download, "Http", lambda: Http(attempts=2, wait=waits.append))
    assert cli.main(["download", "jets", "--split", "test"]) == 0
    told = capsys.readouterr().out
    assert "MIT" in told
    assert "jetrep prepare jets --split test --out stores/jets-test" in told
    assert left(data) == ["test.h5"]
    assert cli.main(["download", "jets", "--files", "train*", "--to", str(data.parent / "elsewhere"), "--quiet"]) == 0
    assert (data.parent / "elsewhere" / "jets" / "train.h5").read_bytes() == CONTENT
    assert cli.main(["download", "jets", "--verify"]) == 0
    assert "absent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("download jetts", "no data set is called 'jetts'"),
        ("download jets --files x*", "fits no file"),
        ("download jets --split val", "no split 'val'"),
        ("download jets --jobs 0", "jobs"),
        ("download jets --mirror nowhere", "mirror"),
        ("download jets --verify", "nothing of jets is there"),
        ("datasets jetts", "no data set is called 'jetts'"),
    ],
)
def test_bad_requests_are_one_line(known, capsys, command, word):
    known(JETS)
    assert cli.main(command.split()) == 1
    told = capsys.readouterr().err
    assert word in told
    assert told.count("\n") == 1
    assert "; " in told


def test_a_split_that_is_none_is_bad_usage():
    assert cli.main(["download", "toptagging", "--split", "training"]) == 2
