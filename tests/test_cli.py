import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jetrep import __version__, cli
from jetrep.errors import InputError
from jetrep.recipes import __file__ as recipes


def test_help_lists_every_verb_and_recipe_without_loading_torch():
    script = "import sys; from jetrep.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    for verb in cli.VERBS:
        assert f"  {verb} " in done.stdout
    for recipe in Path(recipes).parent.glob("*.yaml"):
        assert f"  {recipe.stem}" in done.stdout


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jetrep {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["pretrian"]])
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    assert cli.main(arguments) == 2


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_documents_every_option(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: jetrep {verb}")
    options = text[text.index("options:") :].split("\n  --")[1:]
    undocumented = [option.split()[0] for option in options if len(option.split("(")[0].split()) < 2]
    assert not undocumented


def test_unknown_option_names_itself_and_exits_with_2(capsys):
    assert cli.main(["pretrain", "store", "--out", "x", "--encoder.widht", "3"]) == 2
    assert "encoder.widht" in capsys.readouterr().err


def test_wrong_value_names_the_path_of_the_option(capsys):
    assert cli.main(["pretrain", "store", "--out", "x", "--encoder.norm", "batchnorm"]) == 2
    assert "encoder.norm" in capsys.readouterr().err


def test_bad_input_is_one_line_and_exit_code_1(tmp_path, capsys):
    file = tmp_path / "jets.npz"
    np.savez(file, p4=np.array([[1.0, 0.0, np.nan, 0.0]], np.float32), n=np.array([1]))
    assert cli.main(["prepare", "arrays", str(file), "--out", str(tmp_path / "store"), "--quiet"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "jets.npz" in message
    assert "jet 0" in message
    assert not (tmp_path / "store").exists()


def test_missing_file_is_exit_code_1(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_interrupt_is_exit_code_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["demo"]) == 130


def test_messages_of_a_failed_system_call(monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device", "/somewhere/shard")

    monkeypatch.setattr(cli, "_run", full)
    assert cli.main(["simulate", "x"]) == 1
    assert capsys.readouterr().err == (
        "jetrep simulate: /somewhere/shard: No space left on device; free space or choose another folder\n"
    )


def test_spelling_of_options(tmp_path, monkeypatch):
    seen = {}

    def run(verb, arguments):
        seen[verb] = arguments

    monkeypatch.setattr(cli, "_run", run)
    cli.main(["finetune", "s", "--batch-size=8", "--from", "run", "--config", "rino-nano", "--out", "my-out"])
    config = seen["finetune"][5]
    assert Path(config).is_file()
    assert seen["finetune"] == ["s", "--batch_size=8", "--from_run", "run", "--config", config, "--out", "my-out"]


def test_error_message_names_file_jet_field_and_remedy():
    error = InputError("is not finite", file="a.npz", jet=3, field="p4", remedy="drop it")
    assert str(error) == "a.npz, jet 3, field 'p4': is not finite; drop it"


def test_error_survives_the_way_back_from_a_worker():
    error = InputError("is not finite", file="a.npz", jet=3, field="p4", remedy="drop it")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.jet == 3
