"""Logs of training, read back and drawn."""

import json

import numpy as np
import pytest

from jetrep.errors import InputError
from jetrep.report.curves import read_metrics, training_curves
from jetrep.report.style import save


def test_csv_and_json_lines_say_the_same(tmp_path):
    (tmp_path / "m.csv").write_text("epoch,step,train_loss,val_loss,note\n0,0,2.5,,start\n0,1,2.0,,\n0,1,,2.25,\n")
    rows = [
        {"epoch": 0, "step": 0, "train_loss": 2.5, "note": "start"},
        {"epoch": 0, "step": 1, "train_loss": 2.0},
        {"epoch": 0, "step": 1, "val_loss": 2.25},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 2, "tra')
    for name in ("m.csv", "m.jsonl"):
        metrics = read_metrics(tmp_path / name)
        assert list(metrics) == ["epoch", "step", "train_loss", "val_loss"]
        np.testing.assert_array_equal(metrics["train_loss"], [2.5, 2.0, np.nan])
        np.testing.assert_array_equal(metrics["val_loss"], [np.nan, np.nan, 2.25])


def test_training_and_validation_share_a_panel(tmp_path):
    steps = np.arange(1000.0)
    noise = np.random.default_rng(0).normal(0, 0.3, 1000)
    metrics = {
        "step": steps,
        "epoch": steps // 100,
        "train/loss": 4 + noise,
        "val/loss": np.where(steps % 100 == 99, 4.1, np.nan),
        "lr": 1e-3 * np.exp(-steps / 100),
        "teacher_entropy": 5 + noise,
    }
    figure = training_curves(metrics)
    loss, rate, entropy = figure.axes[:3]
    assert [ax.get_ylabel() for ax in figure.axes[:3]] == ["Loss", "Learning rate", "Teacher entropy"]
    assert {ax.get_xlabel() for ax in figure.axes[:3]} == {"Step"}
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ["training", "validation"]
    raw, mean, validation = loss.lines
    assert len(raw.get_xdata()) == 1000
    assert len(validation.get_xdata()) == 10
    # The running mean over 41 points, at the point in its middle.
    assert mean.get_xdata()[0] == 20
    assert mean.get_ydata()[0] == pytest.approx((4 + noise[:41]).mean())
    # A smooth schedule is drawn as it is, on a logarithmic axis.
    assert len(rate.lines) == 1
    assert (rate.get_yscale(), entropy.get_yscale()) == ("log", "linear")
    (file,) = save(figure, tmp_path / "training.png")
    assert file.stat().st_size > 10_000
    assert len(training_curves(metrics, names=["lr"]).axes) == 1


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_labels_lie_within_the_figure_and_apart(tmp_path, n):
    """Though nobody looks for room for them; and it stays so if the figure is saved again."""
    steps = np.arange(50.0)
    metrics = {"step": steps} | {f"gradient_norm_{i}": 10.0 ** (-2 * i) * (1 + steps / 50) for i in range(n)}
    figure = training_curves(metrics)
    before = [ax.get_position().bounds for ax in figure.axes]
    for _ in range(2):
        save(figure, tmp_path / "training.png")
    assert [ax.get_position().bounds for ax in figure.axes] == before
    boxes = [ax.get_tightbbox() for ax in figure.axes[:n]]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 <= box.y0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_bad_input_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"m\.jsonl: line 2"):
        read_metrics(tmp_path / "m.jsonl")
    (tmp_path / "empty.csv").write_text("step,loss\n")
    with pytest.raises(InputError, match="no metrics"):
        read_metrics(tmp_path / "empty.csv")
    with pytest.raises(InputError, match="none"):
        read_metrics(tmp_path / "none.csv")
    (tmp_path / "m.txt").write_text("")
    with pytest.raises(InputError, match="txt"):
        read_metrics(tmp_path / "m.txt")
    with pytest.raises(InputError, match="'f1'"):
        training_curves({"step": [1.0], "loss": [2.0]}, names=["f1"])
    with pytest.raises(InputError, match="no metric"):
        training_curves({"step": [1.0]})
