"""Commands that are stopped, by the user, by the system or by a full disk; and damage to what they left."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import PRETRAINING, SIMULATION, TRAINING, jetrep, logged

from jetrep.objectives.self_distillation import SelfDistillation

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")


@pytest.fixture
def stopped(monkeypatch, tmp_path):
    """The command of a run that was stopped after six of eight steps, and its folder."""
    command = f"pretrain good --out {tmp_path / 'run'} {PRETRAINING} --engine.log_every 1 --engine.checkpoint_every 2"
    original = SelfDistillation.after_step

    def after_step(self, step, total_steps):
        original(self, step, total_steps)
        if step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SelfDistillation, "after_step", after_step)
        assert jetrep(command) == 130
    return command, tmp_path / "run"


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped"])
def test_a_damaged_state_to_resume_from(stopped, capsys, damage):
    command, run = stopped
    state = run / "resume.ckpt"
    content = bytearray(state.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    state.write_bytes({"truncated": content[:middle], "empty": b"", "text": b"weights", "flipped": content}[damage])
    capsys.readouterr()
    assert jetrep(command) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert f"{state}: the state to resume from is damaged; remove the file" in complaint
    state.unlink()
    assert jetrep(command) == 0
    assert logged(run, "step") == list(range(1, 9))


def test_a_damaged_log_is_mended(stopped):
    command, run = stopped
    log = run / "metrics.jsonl"
    log.write_bytes(b'\xff\xfe\0garbage}\n[1]\n{"ste}\n' + log.read_bytes() + b'{"step": 6, "loss"')
    assert jetrep(command) == 0
    assert logged(run, "step") == list(range(1, 9))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_damaged_settings(stopped, capsys, content):
    command, run = stopped
    (run / "settings.json").write_bytes(content)
    capsys.readouterr()
    assert jetrep(command) == 1
    assert "settings.json: the settings of the run cannot be read" in capsys.readouterr().err
    assert jetrep(f"{command} --overwrite") == 0


WRITERS = {
    "prepare": "prepare arrays good.npz --classes qcd top --out {}/new --quiet",
    "simulate": f"simulate {{}}/new {SIMULATION}",
    "pretrain": f"pretrain good --out {{}}/new {PRETRAINING} --engine.checkpoint_every 2",
    "pretrain, at the end": f"pretrain good --out {{}}/new {PRETRAINING}",
    "finetune": f"finetune good --from pretrained --out {{}}/new {TRAINING}",
    "embed": "embed pretrained --on good --out {}/new.parquet --quiet",
    "evaluate": "evaluate tagger --on good --out {}/new --n-bootstrap 2 --no-projection --quiet",
}


@contextlib.contextmanager
def limited_files(folder):
    """The operating system refuses to write files beyond a few kB, everywhere."""
    import resource  # not on every system

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(folder):
    """A file system of 8 kB; only the system's administrator may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("limit", [limited_files, small_disk])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk(tmp_path, capsys, writer, limit):
    command = WRITERS[writer].format(tmp_path)
    once = WRITERS[writer].format(tmp_path.parent / f"once-{tmp_path.name}")
    assert jetrep(once) == 0  # what is compiled on first use is written elsewhere
    capsys.readouterr()
    with limit(tmp_path):
        assert jetrep(command) == 1
        complaint = capsys.readouterr().err
        left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
        whole = [json.loads((tmp_path / name).read_text()) for name in left if name.endswith(".json")]
    assert complaint.count("\n") == 1
    assert f"{tmp_path}/new" in complaint
    assert any(words in complaint for words in ("disk is full", "No space left on device", "File too large"))
    assert "free space" in complaint
    # Nothing half-written: whole files of a run that can be resumed, or nothing; least of all what makes it a result.
    assert not [name for name in left if "/." in name or name.startswith(".")]
    assert "new/model.json" not in left
    assert "new/manifest.json" not in left
    assert all(whole)
    assert jetrep(command) == 0


@pytest.fixture
def start():
    """Start a command in a folder; what a failed test leaves of it is terminated, or it would work on for hours."""
    started = []

    def begin(command, folder):
        process = subprocess.Popen(
            [sys.executable, "-m", "jetrep.cli", *command.split()],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def stop(process, when, number):
    """Send a signal as soon as ``when()``; the exit code, and what was printed."""
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    return process.returncode, printed


def test_pretraining_survives_every_way_of_being_stopped(world, tmp_path, start):
    command = (
        f"pretrain {world}/good --out run {PRETRAINING} --epochs 75 --engine.log_every 5 --engine.checkpoint_every 20"
    )
    run, reached = tmp_path / "run", 0

    def steps():
        log = run / "metrics.jsonl"
        lines = log.read_text().splitlines(keepends=True) if (run / "resume.ckpt").exists() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)

    for number, code, words in (
        (signal.SIGINT, 130, "interrupted; the same command goes on"),
        (signal.SIGTERM, 143, "terminated; the same command goes on"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ):
        returned, printed = stop(start(command, tmp_path), lambda: steps() >= reached + 25, number)  # noqa: B023
        assert returned == code
        assert words in printed
        assert "Traceback" not in printed
        assert set(os.listdir(run)) <= {"settings.json", "metrics.jsonl", "resume.ckpt"}
        reached = steps()
    with contextlib.chdir(tmp_path):
        assert jetrep(command) == 0
    assert logged(run, "step") == list(range(5, 301, 5))
    assert {"model.json", "model.safetensors"} <= set(os.listdir(run))
    assert not (run / "resume.ckpt").exists()


@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 1)])
def test_stopping_a_simulation_leaves_nothing(tmp_path, start, number, code, workers):
    size = f"--jets 1000000 --jets-per-shard 100 --workers {workers}"
    process = start(f"simulate store --processes qcd --preset toptagging {size} --quiet", tmp_path)
    returned, printed = stop(process, lambda: list(tmp_path.glob(".store.writing-*/shard-00001.arrow")), number)
    assert returned == code
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_what_a_failure_prints_is_no_traceback(world, start):
    """As a user sees it: through the console script, exit code and all."""
    process = start("pretrain nowhere --out new", world)
    printed, complaint = process.communicate(timeout=60)
    assert process.returncode == 1
    assert printed == ""
    assert complaint.splitlines() == [
        "jetrep pretrain: nowhere: does not exist; give the folder that `jetrep prepare` or `jetrep simulate` wrote"
    ]
