"""Preparation that is killed, stopped or crowded: nothing is lost, nothing is there twice, nothing is half there."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jetrep.errors import InputError
from jetrep.store import Store, folder
from jetrep.store import prepare as prepare_module
from jetrep.store.crew import _Processes
from jetrep.store.manifest import MANIFEST
from jetrep.store.preparation import work_folder
from jetrep.store.prepare import prepare

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

RUN = "import sys; from jetrep.cli import main; sys.exit(main())"


def save(file: Path, jets, **change) -> Path:
    np.savez(file, **{"p4": jets.p4, "n": jets.counts, **change})
    return file


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, make_jets) -> Path:
    """Three files of unequal length, with empty jets; the shards of 250 rows do not end where the files do."""
    where = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    for number, length in enumerate((4000, 60, 5040)):
        save(where / f"{number}.npz", make_jets(rng.integers(0, 30, length), seed=number))
    return where


def files_of(inputs: Path) -> list[Path]:
    return sorted(inputs.glob("*.npz"))


def command(inputs: Path, out: Path, workers: int = 1, *more: str) -> subprocess.Popen:
    words = ["prepare", "arrays", *map(str, files_of(inputs)), "--out", str(out), "--jets-per-shard", "250"]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *words, "--workers", str(workers), *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NUMBA_NUM_THREADS": "1"},
    )


def finished(out: Path) -> int:
    return len(list(out.parent.glob(f".{out.name}.preparing-*/part-*.json")))


@pytest.fixture(scope="session")
def expected(inputs, tmp_path_factory) -> Store:
    """The store of a command that nobody disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "s"
    return prepare("arrays", files_of(inputs), out=out, jets_per_shard=250, quiet=True)


def assert_the_same(store: Store, expected: Store) -> None:
    store.verify()
    assert store.content_hash == expected.content_hash
    assert store.manifest.shards == expected.manifest.shards
    assert store.manifest.dropped == expected.manifest.dropped
    assert store.manifest.provenance == expected.manifest.provenance
    assert {path.name for path in store.path.iterdir()} == {path.name for path in expected.path.iterdir()}


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_again_and_again(inputs, tmp_path, expected, capsys, workers):
    """Real kill -9, at moments that differ, until the command has a chance to end."""
    out, rng, kills, reached = tmp_path / "s", random.Random(workers), 0, 0
    while kills < 5:
        process = command(inputs, out, workers)
        until = reached + rng.randint(1, 5)
        while process.poll() is None and finished(out) < until:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.03)
        process.kill()
        process.communicate(timeout=60)
        if process.returncode == 0:
            break
        kills += 1
        assert not out.exists()
        time.sleep(1.0 if workers > 1 else 0.0)  # workers notice within a second that nobody wants them any more
        assert finished(out) >= reached
        reached = finished(out)
    assert kills == 5
    store = prepare("arrays", files_of(inputs), out=out, jets_per_shard=250)
    assert f"going on: {reached} of 37 parts are finished" in capsys.readouterr().err
    assert_the_same(store, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def steps_until_done(run, monkeypatch) -> int:
    """Call ``run`` in forked processes that end at the first, second, … flush to disk, until one comes through."""
    original, step = folder.sync, 0
    while True:
        step += 1
        child = os.fork()
        if child == 0:
            left = step

            def ended(path: Path) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                original(path)

            try:
                for module in ("folder", "preparation"):
                    monkeypatch.setattr(f"jetrep.store.{module}.sync", ended)
                run()
                os._exit(0)
            except BaseException:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        if code == 0:
            return step


def test_killed_at_every_step(tmp_path, make_jets, monkeypatch):
    """Each process gets one step further than the one before, or starts where it ended; both must come through."""
    files = [save(tmp_path / f"{i}.npz", make_jets([5, 0, 7, 4, 9], seed=i)) for i in range(2)]
    how = {"jets_per_shard": 3, "quiet": True, "workers": 1}
    before = prepare("arrays", files, out=tmp_path / "before", **how)
    out = tmp_path / "s"
    assert steps_until_done(lambda: prepare("arrays", files, out=out, **how), monkeypatch) > 3
    assert_the_same(Store(out), before)
    steps_until_done(lambda: prepare("arrays", files[:1], out=out, overwrite=True, **how), monkeypatch)
    assert len(Store(out)) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npz", "1.npz", "before", "s"]


def test_an_addition_killed_at_every_step_leaves_a_good_store(tmp_path, make_jets, monkeypatch):
    files = [save(tmp_path / f"{i}.npz", make_jets([5, 0, 7, 4, 9], seed=i)) for i in range(3)]
    how = {"jets_per_shard": 3, "quiet": True, "workers": 1}
    out, seen = tmp_path / "s", set()
    first = prepare("arrays", files[:1], out=out, **how).content_hash

    def add() -> None:
        prepare("arrays", files, out=out, add=True, **how)

    original = folder.sync

    def look(path: Path) -> None:
        store = Store(out)
        store.verify()
        seen.add(store.content_hash)
        original(path)

    monkeypatch.setattr(folder, "sync", look)
    monkeypatch.setattr("jetrep.store.preparation.sync", look)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "add_to_store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add()
    assert Store(out).content_hash == first
    monkeypatch.setattr(folder, "sync", original)
    steps_until_done(add, monkeypatch)
    store = Store(out)
    store.verify()
    assert seen == {first}
    assert len(store) == 12
    assert {path.name for path in out.iterdir()} == {MANIFEST, *(shard.file for shard in store.manifest.shards)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npz", "1.npz", "2.npz", "s"]


@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 2)])
def test_a_stopped_command_keeps_what_is_finished(inputs, tmp_path, expected, number, code, workers):
    out = tmp_path / "s"
    process = command(inputs, out, workers)
    while finished(out) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in printed
    assert "finished parts kept" in printed
    assert [path.name for path in tmp_path.iterdir()] == [next(tmp_path.iterdir()).name]  # the lock is gone
    assert_the_same(prepare("arrays", files_of(inputs), out=out, jets_per_shard=250, quiet=True), expected)


def test_threads_of_the_pool_do_not_complain_about_workers_that_are_killed(monkeypatch):
    class Pool:
        def shutdown(self, **how):
            for name in ("QueueFeederThread", "ExecutorManagerThread", "another"):
                thread = threading.Thread(target=lambda: 1 / 0, name=name)
                thread.start()
                thread.join()

    told = []
    monkeypatch.setattr(threading, "excepthook", lambda problem: told.append(problem.thread.name))
    before = threading.excepthook
    monkeypatch.setattr(_Processes, "_start", lambda self: Pool())
    _Processes(1).end()
    assert told == ["another"]
    assert threading.excepthook is before


def interrupted_after(parts: int, monkeypatch, *arguments, **how) -> None:
    """Run ``prepare`` and stop it by an interrupt when so many parts are finished."""
    from jetrep.store import crew

    original, done = crew.make_part, []

    def make_part(*part):
        if len(done) == parts:
            raise KeyboardInterrupt
        done.append(original(*part))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(crew, "make_part", make_part)
        with pytest.raises(KeyboardInterrupt):
            prepare(*arguments, **how)


def test_other_settings_begin_anew(inputs, tmp_path, monkeypatch, capsys):
    out, files = tmp_path / "s", files_of(inputs)
    interrupted_after(4, monkeypatch, "arrays", files, out=out, jets_per_shard=250)
    assert finished(out) == 4
    assert "4 finished parts kept in" in capsys.readouterr().err
    store = prepare("arrays", files, out=out, jets_per_shard=250, R=0.4)
    printed = capsys.readouterr().err
    assert "removed unfinished work of a command with other settings or files" in printed
    assert "going on" not in printed
    assert (
        store.content_hash
        == prepare("arrays", files, out=tmp_path / "t", jets_per_shard=250, R=0.4, quiet=True).content_hash
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "t"]


def test_a_file_that_changed_is_read_again_and_others_are_not(tmp_path, make_jets, monkeypatch, capsys):
    out, files = tmp_path / "s", [tmp_path / f"{i}.npz" for i in range(4)]
    for i, file in enumerate(files):
        save(file, make_jets([4] * 10, seed=i))
    interrupted_after(3, monkeypatch, "arrays", files, out=out, jets_per_shard=10)
    new = make_jets([4] * 10, seed=77)
    save(files[1], new)
    os.utime(files[1], ns=(1, 1))  # whatever the clock's resolution
    store = prepare("arrays", files, out=out, jets_per_shard=10)
    assert "going on: 2 of 4 parts are finished" in capsys.readouterr().err
    assert store.jets().p4[40:80].tobytes() == new.p4.tobytes()


@pytest.mark.parametrize("damage", ["record", "empty record", "shard", "no shard"])
def test_damaged_parts_are_made_again(inputs, tmp_path, expected, monkeypatch, damage):
    out = tmp_path / "s"
    interrupted_after(4, monkeypatch, "arrays", files_of(inputs), out=out, jets_per_shard=250, quiet=True)
    (work,) = tmp_path.iterdir()
    record, shard = work / "part-00001.json", next(work.glob("part-00001-*.arrow"))
    if "record" in damage:
        record.write_bytes(b"" if "empty" in damage else record.read_bytes()[:-20])
    elif damage == "shard":
        shard.write_bytes(shard.read_bytes()[:-20])
    else:
        shard.unlink()
    assert_the_same(prepare("arrays", files_of(inputs), out=out, jets_per_shard=250, quiet=True), expected)


def test_bad_input_late_keeps_the_parts_before(tmp_path, make_jets, capsys):
    files = [save(tmp_path / f"{i}.npz", make_jets([4] * 10, seed=i)) for i in range(3)]
    p4 = make_jets([4] * 10).p4.copy()
    p4[7, 1] = np.nan
    good = files[2].read_bytes()
    save(files[2], make_jets([4] * 10), p4=p4)
    with pytest.raises(InputError, match=r"2.npz, jet 1, field 'px'"):
        prepare("arrays", files, out=tmp_path / "s", jets_per_shard=10)
    assert not (tmp_path / "s").exists()
    files[2].write_bytes(good)
    capsys.readouterr()
    assert len(prepare("arrays", files, out=tmp_path / "s", jets_per_shard=10)) == 30
    assert "going on: 2 of 3 parts" in capsys.readouterr().err


def test_two_at_once(inputs, tmp_path, expected, monkeypatch):
    """The second is refused; it neither waits nor disturbs the first."""
    out = tmp_path / "s"
    process = command(inputs, out)
    while finished(out) < 1:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(InputError, match=rf"\.s\.lock: process {process.pid} on .* is preparing this store; wait"):
            prepare("arrays", files_of(inputs), out=out, quiet=True)
        with pytest.raises(InputError, match="is preparing this store"):
            prepare("arrays", files_of(inputs), out=out, R=0.4, quiet=True, overwrite=True)
    finally:
        process.send_signal(signal.SIGCONT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert_the_same(Store(out), expected)


def test_many_locks_at_once_let_one_in(tmp_path):
    inside, most, refused = [], [], []

    def enter() -> None:
        for _ in range(50):
            try:
                with folder.locked(tmp_path / "s"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except InputError:
                refused.append(1)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refused) == 200
    assert list(tmp_path.iterdir()) == []


def test_locks_where_the_file_system_knows_none(tmp_path, monkeypatch):
    """The file then counts as long as the process that it names is alive, or may be: on another machine."""
    import fcntl

    def unsupported(*_):
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = tmp_path / ".s.lock"
    for holder, free in (
        (f"{folder.socket.gethostname()} {dead.pid}", True),
        (f"{folder.socket.gethostname()} {os.getpid()}", False),
        (f"elsewhere {dead.pid}", False),
    ):
        lock.write_text(holder + "\n")
        if free:
            with folder.locked(tmp_path / "s"):
                assert lock.read_text() == f"{folder.socket.gethostname()} {os.getpid()}\n"
            assert not lock.exists()
        else:
            with pytest.raises(InputError, match="is preparing this store"), folder.locked(tmp_path / "s"):
                pass
            assert lock.read_text() == holder + "\n"


def test_a_worker_that_dies_is_replaced(inputs, tmp_path, expected):
    """Its part is made again."""
    out = tmp_path / "s"
    process = command(inputs, out, 2)
    while finished(out) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("needs /proc")
    workers = [
        int(child) for child in children.read_text().split() if b"loky" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    assert workers
    os.kill(workers[-1], signal.SIGKILL)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert_the_same(Store(out), expected)


def test_workers_that_always_die_are_an_error(tmp_path, make_jets):
    from concurrent.futures import BrokenExecutor, Future

    from jetrep.store.crew import carry_out
    from jetrep.store.parts import Part

    class Doomed:
        place, reports, lives = 2, True, 0

        def submit(self, job, part, limit):
            future = Future()
            future.set_exception(BrokenExecutor())
            return future

        def revive(self):
            self.lives += 1

    crew = Doomed()
    with pytest.raises(InputError, match=r"worker processes died 4 times.*fewer --workers.*goes on"):
        carry_out(None, [Part(0, ((0, 0, 1),))], {}, crew, max_jets=None, done=lambda part: None)
    assert crew.lives == 3


def test_the_record_of_a_part_is_complete(inputs, tmp_path, monkeypatch):
    interrupted_after(18, monkeypatch, "arrays", files_of(inputs), out=tmp_path / "s", jets_per_shard=250, quiet=True)
    (work,) = tmp_path.iterdir()
    record = json.loads((work / "part-00016.json").read_text())
    assert record["spans"] == [[1, 0, 60], [2, 0, 190]]
    assert record["read"] == 250 == record["shard"]["jets"] + record["dropped"]["empty"]
    assert set(record["hashes"]) == {"1", "2"}


def test_a_worker_that_writes_on_does_not_keep_the_work_folder(tmp_path):
    """As one of a cluster does whose part turned out not to be needed."""
    began, files = threading.Event(), 0

    def write(place):
        nonlocal files
        for files in range(1_000_000):
            try:
                (place / str(files)).touch()
            except FileNotFoundError:
                return
            if files == 100:
                began.set()

    with work_folder(tmp_path / "store", {}, print) as place:
        worker = threading.Thread(target=write, args=(place,))
        worker.start()
        began.wait()
    worker.join()
    assert files < 999_999
    assert list(tmp_path.iterdir()) == []
