"""Figures of reconstructed jets: what is drawn is what was given."""

import numpy as np
import pytest
from matplotlib.colors import LogNorm

from jetrep.errors import InputError
from jetrep.report.measurement import Measurement
from jetrep.report.reconstruction_figures import correlation_matrix, curves, images, residual_histograms
from jetrep.report.style import save


def measured(value, error, **more):
    return Measurement(value, error, value - error, value + error, **more)


def test_images_share_their_scale_and_show_the_difference(tmp_path):
    rng = np.random.default_rng(0)
    true = {"mean": rng.random((8, 8)), "jet 1": np.eye(8)}
    other = {"mean": rng.random((8, 8)), "jet 1": np.zeros((8, 8))}
    figure = images(true, other, half_width=0.8, title="qcd")
    shown = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(shown) == 6
    for image in (shown[0], shown[1], shown[3], shown[4]):
        assert isinstance(image.norm, LogNorm)
        assert image.get_clim() == shown[0].get_clim()
        assert image.get_extent() == [-0.8, 0.8, -0.8, 0.8]
    np.testing.assert_allclose(shown[2].get_array(), other["mean"] - true["mean"])
    np.testing.assert_allclose(shown[5].get_array(), -np.eye(8))
    assert shown[5].get_clim() == (-1, 1)
    (file,) = save(figure, tmp_path / "images.png")
    assert file.stat().st_size > 1000
    with pytest.raises(InputError, match="images"):
        images({"mean": np.ones((2, 2))}, {"mean": np.ones((3, 3))}, half_width=1)


def test_empty_images_can_be_drawn(tmp_path):
    save(images({"a": np.zeros((4, 4))}, {"a": np.zeros((4, 4))}, half_width=1), tmp_path / "empty.png")


def test_residual_histograms_lose_nothing(tmp_path):
    rng = np.random.default_rng(0)
    wide = rng.standard_cauchy(500)
    figure = residual_histograms(
        {"r": {"qcd": wide, "top": rng.normal(size=50)}, "none": {"qcd": []}, "0": {"qcd": [0, 0]}}
    )
    first, second = figure.axes[:2]
    heights = [patch.get_data().values for patch in first.patches]
    assert [h.sum() for h in heights] == pytest.approx([1, 1])
    assert second.get_xlabel() == "0"
    whole = residual_histograms({"n": {"qcd": [0] * 20 + [-7]}}).axes[0]
    assert whole.get_xlim()[0] < -7
    assert whole.patches[0].get_data().values.max() == pytest.approx(20 / 21)
    assert f"{np.median(wide):.2g}" in first.get_legend().get_texts()[0].get_text()
    save(figure, tmp_path / "residuals.png")
    with pytest.raises(InputError, match="no residuals"):
        residual_histograms({"r": {"qcd": []}})


def test_correlations_are_written_into_their_cells(tmp_path):
    figure = correlation_matrix([[1.0, -0.5], [np.nan, 0.25]], ["s1", "z1²"], ["mass", "pt"], title="qcd")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "-0.50", "0.25"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["s1", "z1²"]
    save(figure, tmp_path / "r.png")
    with pytest.raises(InputError, match="correlations"):
        correlation_matrix([[1.0]], ["a"], ["b", "c"])


def test_curves_are_in_order_with_their_errors(tmp_path):
    points = [(0.5, measured(0.1, 0.02)), (0.1, measured(3.0, 0.5)), (0.3, measured(1.0, 0.1, limit=True))]
    figure = curves({"LGAE": points, "GNNAE": [(0.4, measured(0.7, 0.1))], "empty": []})
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    line = axes.containers[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[0.1, 3.0], [0.3, 1.0], [0.5, 0.1]])
    assert axes.get_xlabel() == "Stored numbers / 90"
    many = curves({"CNN": [(100, measured(0.3, 0.1)), (1e5, measured(0.2, 0.1))]}, x_label="Jets", log_x=True)
    assert many.axes[0].get_xscale() == "log"
    assert many.axes[0].get_ylim()[0] == 0
    save(many, tmp_path / "efficiency.png")
    with pytest.raises(InputError, match="no point"):
        curves({"a": []})
