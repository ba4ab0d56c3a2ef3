"""A store is there as a whole or not at all, whatever ends the writer."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jetrep.errors import InputError
from jetrep.store import Store, StoreWriter
from jetrep.store import writer as writer_module
from jetrep.store.manifest import MANIFEST

WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from jetrep.jets import Jets
from jetrep.store import StoreWriter
from jetrep.store.interrupt import orderly_termination

jets = Jets(np.tile(np.float32([[5, 3, 0, 4]]), (6, 1)), np.array([0, 2, 4, 6]))
with orderly_termination(), StoreWriter(Path(sys.argv[1]), provenance={}, jets_per_shard=1, overwrite=True) as writer:
    writer.write(jets)
    print("writing", flush=True)
    time.sleep(60)
"""


def start_writer(out: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


def make_store(out: Path, make_jets, n: int = 3) -> Store:
    with StoreWriter(out, provenance={}) as writer:
        writer.write(make_jets([3] * n))
    return Store(out)


def test_a_killed_writer_leaves_no_store_and_the_next_one_tidies_up(tmp_path, make_jets):
    process = start_writer(tmp_path / "s")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "s").exists()
    (rest,) = tmp_path.iterdir()
    assert (rest / "shard-00002.arrow").exists()  # it had come far
    assert not (rest / MANIFEST).exists()
    with pytest.raises(InputError, match="has no manifest"):
        Store(rest)
    make_store(tmp_path / "s", make_jets)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_stopped_writer_cleans_up_and_leaves_the_old_store(tmp_path, make_jets, number, code):
    before = make_store(tmp_path / "s", make_jets).content_hash
    process = start_writer(tmp_path / "s")
    process.send_signal(number)
    assert process.wait() == code
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert Store(tmp_path / "s").content_hash == before


def test_the_folder_of_a_living_writer_is_left_alone(tmp_path, make_jets):
    with StoreWriter(tmp_path / "s", provenance={}) as first:
        first.write(make_jets([2, 2]))
        make_store(tmp_path / "s", make_jets)
        first.write(make_jets([4]))
        first.overwrite = True
    assert len(Store(tmp_path / "s")) == 3


def test_two_writers_to_one_place_do_not_mix(tmp_path, make_jets):
    late = StoreWriter(tmp_path / "s", provenance={}).__enter__()
    late.write(make_jets([2, 2]))
    before = make_store(tmp_path / "s", make_jets).content_hash
    with pytest.raises(InputError, match="already stands"):
        late.__exit__(None, None, None)
    assert Store(tmp_path / "s").content_hash == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_an_old_store_that_a_killed_writer_had_moved_aside_comes_back(tmp_path, make_jets):
    before = make_store(tmp_path / "s", make_jets).content_hash
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "s").rename(tmp_path / f".s.replaced-{socket.gethostname()}-{dead.pid}-abc")
    with pytest.raises(InputError, match="already stands"), StoreWriter(tmp_path / "s", provenance={}):
        pass
    assert Store(tmp_path / "s").content_hash == before


def test_an_existing_store_is_replaced_only_on_demand(tmp_path, make_jets):
    first = make_store(tmp_path / "s", make_jets, 3)
    mapped = first.jets()
    copy = mapped.p4.tobytes()
    with pytest.raises(InputError, match="already stands there; give --overwrite"):
        make_store(tmp_path / "s", make_jets, 5)
    assert Store(tmp_path / "s").content_hash == first.content_hash
    with StoreWriter(tmp_path / "s", provenance={}, overwrite=True) as writer:
        writer.write(make_jets([9] * 5))
        assert len(Store(tmp_path / "s")) == 3  # the old one serves until the new one is complete
    assert len(Store(tmp_path / "s")) == 5
    assert mapped.p4.tobytes() == copy  # whoever still reads the old one is not disturbed
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_what_is_no_store_is_never_replaced(tmp_path, make_jets):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(InputError, match="is no store, so it will not be replaced"):
        StoreWriter(tmp_path / "thesis", provenance={}, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is in the way"):
        StoreWriter(tmp_path / "file", provenance={}, overwrite=True)
    (tmp_path / "empty").mkdir()
    assert len(make_store(tmp_path / "empty", make_jets)) == 3


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path, make_jets, problem):
    def interrupted() -> None:
        with StoreWriter(tmp_path / "s", provenance={}, jets_per_shard=2) as writer:
            writer.write(make_jets([3] * 7))
            raise problem

    with pytest.raises(problem):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_no_jets_is_an_error(tmp_path):
    with (
        pytest.raises(InputError, match=r"no jets to store \(dropped: 4 empty\)"),
        StoreWriter(tmp_path / "s", provenance={}) as writer,
    ):
        writer.drop("empty", 4)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_when_the_manifest_is_synced(tmp_path, make_jets, monkeypatch):
    def full(path: Path) -> None:
        if path.name == MANIFEST:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer_module, "sync", full)
    with pytest.raises(InputError, match=r"s/manifest.json: the disk is full; free space"):
        make_store(tmp_path / "s", make_jets)
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.store import StoreWriter

jets = Jets(np.tile(np.float32([[5, 3, 0, 4]]), (400, 1)), np.arange(0, 401, 4))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with StoreWriter(Path(sys.argv[1]), provenance={}) as writer:
        writer.write(jets)
        # The operating system itself refuses to write more than this, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
except InputError as problem:
    sys.exit(str(problem))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_disk_that_refuses_in_the_middle_of_a_shard(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path / 's' / 'shard-00000.arrow'}: the disk is full; free space")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), StoreWriter(tmp_path / "file" / "s", provenance={}):
        pass
