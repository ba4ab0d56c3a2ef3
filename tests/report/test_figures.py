"""What stands in the figures: lines, points, labels, legends that cover nothing; and how they are saved."""

import math
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from jetrep.errors import InputError
from jetrep.report.figures import RocCurve, embedding, results, roc, score_distributions
from jetrep.report.measurement import Measurement
from jetrep.report.style import new_figure, save, style
from jetrep.report.tables import ResultsTable

GRID = np.linspace(0.02, 1.0, 50)


def drawn(figure, tmp_path):
    """Save, and return the picture as an array: not blank, of the size asked for."""
    (file,) = save(figure, tmp_path / "figure.png")
    picture = imread(file)
    width, height = figure.get_size_inches() * 150
    assert picture.shape[:2] == (pytest.approx(height, abs=1), pytest.approx(width, abs=1))
    assert 0.01 < np.mean(picture[..., :3] < 0.9) < 0.7
    return picture


def legend_texts(figure):
    texts = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    for ax in figure.axes:
        texts += [t.get_text() for child in ax.get_children() if hasattr(child, "get_texts") for t in child.get_texts()]
    return texts


def overlap(a, b):
    """Overlap by more than the few pixels of empty border that a box of text has."""
    border = 4
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return width > border and height > border


def assert_no_text_overlaps(figure):
    """No two of: tick labels, axis labels, titles, legends."""
    renderer = figure.canvas.get_renderer()
    boxes = [legend.get_window_extent(renderer) for legend in figure.legends]
    for ax in figure.axes:
        if not ax.axison:
            continue
        limits = [sorted(ax.get_xlim()), sorted(ax.get_ylim())]
        texts = [ax.xaxis.label, ax.yaxis.label, ax.title, ax._left_title]
        for axis, (low, high) in zip((ax.xaxis, ax.yaxis), limits, strict=True):
            inside = [t for t, at in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=False) if low <= at <= high]
            texts += inside
        boxes += [t.get_window_extent(renderer) for t in texts if t.get_text() and t.get_visible()]
    assert len(boxes) > 5
    for i, box in enumerate(boxes):
        for other in boxes[:i]:
            assert not overlap(box, other)


@pytest.fixture
def curves():
    rng = np.random.default_rng(0)
    base = GRID**-3.0 * 5
    return [
        RocCurve.from_seeds(model, domain, GRID, base * scale * np.exp(rng.normal(0, 0.1, (3, 1))))
        for model, scale in (("supervised", 1.0), ("RINO", 2.0), ("mass", 0.3))
        for domain in ("simulation", "collisions")
    ]


def test_roc_has_a_line_and_a_band_per_model_and_domain(curves, tmp_path):
    figure = roc(curves, signal="top", background="QCD")
    drawn(figure, tmp_path)
    (ax,) = figure.axes
    assert len(ax.lines) == len(ax.collections) == 6
    assert ax.get_yscale() == "log"
    assert "Signal efficiency" in ax.get_xlabel()
    assert "top" in ax.get_xlabel()
    assert "Background rejection" in ax.get_ylabel()
    assert "QCD" in ax.get_ylabel()
    assert len({line.get_color() for line in ax.lines}) == 3
    assert len({line.get_linestyle() for line in ax.lines}) == 2
    assert set(legend_texts(figure)) == {"supervised", "RINO", "mass", "simulation", "collisions"}
    assert_no_text_overlaps(figure)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), curves[0].rejection)


def test_the_band_is_one_standard_deviation_over_the_seeds():
    rejections = np.array([[8.0, 2.0], [10.0, 2.0], [12.0, np.inf]])
    curve = RocCurve.from_seeds("m", "d", [0.3, 0.9], rejections)
    assert (curve.rejection[0], curve.low[0], curve.high[0]) == (10.0, 8.0, 12.0)
    assert np.isinf(curve.rejection[1])
    assert RocCurve.from_seeds("m", "d", [0.3, 0.9], rejections[:1]).low is None


def test_infinite_rejections_are_left_out_of_the_line_and_the_frame(tmp_path):
    figure = roc([RocCurve("m", "d", GRID, np.where(GRID < 0.5, np.inf, 1 / GRID))])
    (ax,) = figure.axes
    assert len(ax.lines[0].get_xdata()) == np.sum(GRID >= 0.5)
    assert np.isfinite(ax.get_ylim()).all()
    drawn(figure, tmp_path)


def test_score_distributions_are_densities_with_a_ratio(tmp_path):
    rng = np.random.default_rng(1)
    scores = {}
    for domain, n, shift in (("simulation", 6000, 0.0), ("collisions", 1500, 1.0)):
        labels = rng.integers(0, 2, n)
        scores[domain] = (1 / (1 + np.exp(-(6 * labels - 3 + rng.normal(shift, 2, n)))), labels)
    figure = score_distributions(scores, ("QCD", "top"), label="Probability of top")
    drawn(figure, tmp_path)
    main, ratio = figure.axes
    assert main.get_ylabel() == "Jets, normalised to unit area"
    assert ratio.get_xlabel() == "Probability of top"
    assert "simulation" in ratio.get_ylabel()
    assert set(legend_texts(figure)) == {f"{c}, {d}" for c in ("QCD", "top") for d in scores}
    values, edges, _ = main.patches[0].get_data()
    assert np.sum(values * np.diff(edges)) == pytest.approx(1.0)
    # The legend stands above the data.
    lowest = main.get_legend().get_window_extent(figure.canvas.get_renderer()).y0
    highest = main.transData.transform((0, max(p.get_data()[0].max() for p in main.patches)))[1]
    assert lowest > highest
    assert_no_text_overlaps(figure)


def test_the_ratio_of_a_domain_to_itself_is_one():
    rng = np.random.default_rng(2)
    same = (rng.random(500), rng.integers(0, 2, 500))
    _, ratio = score_distributions({"a": same, "b": same}, ("QCD", "top"), n_bins=5).axes
    points = [container.lines[0].get_ydata() for container in ratio.containers]
    np.testing.assert_allclose(points, 1.0)


def test_one_domain_and_an_absent_class_need_no_ratio(tmp_path):
    figure = score_distributions({"test": ([0.2, 0.9, 1.7], [0, 0, 0])}, ("QCD", "top"))
    drawn(figure, tmp_path)
    (ax,) = figure.axes
    assert legend_texts(figure) == ["QCD, test"]
    values, edges, _ = ax.patches[0].get_data()
    assert np.sum(values * np.diff(edges)) == pytest.approx(1.0)  # 1.7 counts in the last bin


def test_embedding_has_a_row_per_projection_and_a_column_per_domain(tmp_path):
    rng = np.random.default_rng(3)
    labels, domains = rng.integers(-1, 2, 300), rng.integers(0, 2, 300)
    xy = rng.normal(size=(300, 2)) + 3 * labels[:, None]
    figure = embedding({"PCA": xy, "t-SNE": 9 * xy}, labels, ("QCD", "top"), domains, ("simulation", "collisions"))
    drawn(figure, tmp_path)
    assert len(figure.axes) == 4
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["simulation", "collisions"]
    assert figure.axes[0].get_ylabel() == "PCA 2 [arb. units]"
    assert figure.axes[3].get_xlabel() == "t-SNE 1 [arb. units]"
    for column, ax in enumerate(figure.axes[:2]):
        others, own = ax.collections
        assert len(own.get_offsets()) == np.sum(domains == column)
        assert len(others.get_offsets()) == np.sum(domains != column)
        assert len(np.unique(own.get_facecolors(), axis=0)) == 3
    assert legend_texts(figure) == ["QCD", "top", "unlabelled", "other domain"]
    assert_no_text_overlaps(figure)
    drawn(embedding({"PCA": xy}, labels, ("QCD", "top")), tmp_path)


@pytest.fixture
def table():
    def measured(value, error):
        return Measurement(value, error, value - error, value + error, seed_error=0.7 * error, n_seeds=3)

    limit = Measurement(900.0, math.nan, 900.0, math.inf, 0, limit=True)
    methods = ("Supervised", "Supervised, truncation-matched", "RINO-MLP", "(mass, multiplicity)")
    return ResultsTable.collect(
        "Trained on simulation",
        {
            method: {
                "simulation": {
                    "auc": measured(0.98 - 0.01 * i, 0.003),
                    "rejection_50": limit if i == 0 else measured(300 / i, 30),
                },
                "collisions": {"auc": measured(0.93 - 0.02 * i, 0.005), "rejection_50": measured(40 / (i + 1), 50)},
            }
            for i, method in enumerate(methods)
        },
    )


def test_results_have_a_point_per_method_domain_and_metric(table, tmp_path):
    figure = results(table)
    drawn(figure, tmp_path)
    auc, rejection = figure.axes
    assert [t.get_text() for t in auc.get_yticklabels()] == list(table.methods)
    assert auc.get_xlabel() == "ROC AUC"
    assert "Rejection" in rejection.get_xlabel()
    assert (auc.get_xscale(), rejection.get_xscale()) == ("linear", "log")
    for ax in figure.axes:
        assert len(ax.lines) == 8
    assert {line.get_xdata()[0] for line in auc.lines} == {
        m.value for (_, _, metric), m in table.cells.items() if metric == "auc"
    }
    # Error bars: total and seeds for each point, but none for the limit, which is an arrow.
    assert (len(auc.collections), len(rejection.collections)) == (16, 14)
    assert (len(auc.texts), len(rejection.texts)) == (0, 1)
    assert legend_texts(figure) == ["simulation", "collisions", "seeds", "total error"]
    # An error larger than the value does not reach below a rejection of 1.
    assert rejection.get_xlim()[0] > 0.3
    # First row on top.
    assert auc.transData.transform((0.95, 0))[1] > auc.transData.transform((0.95, 3))[1]
    assert_no_text_overlaps(figure)


@pytest.mark.parametrize("metrics", [["auc"], ["rejection_50"], ["rejection_50", "auc"]])
def test_results_of_selected_metrics(table, metrics, tmp_path):
    figure = results(table, metrics)
    drawn(figure, tmp_path)
    assert len(figure.axes) == len(metrics)
    assert_no_text_overlaps(figure)


def test_differences_have_a_line_at_zero(table, tmp_path):
    figure = results(table, ["auc"], zero="untrained")
    drawn(figure, tmp_path)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "ROC AUC − untrained"
    assert [line.get_xdata() for line in axes.lines if line.get_linestyle() == "--"] == [[0.0, 0.0]]
    assert_no_text_overlaps(figure)


def test_bad_input_is_named(table, tmp_path):
    with pytest.raises(InputError, match="curve"):
        roc([])
    with pytest.raises(InputError, match="against"):
        roc([RocCurve("m", "d", GRID, GRID[:-1])])
    with pytest.raises(InputError, match="rejection_30"):
        results(table, ["rejection_30"])
    with pytest.raises(InputError, match="scores"):
        score_distributions({}, ("QCD",))
    with pytest.raises(InputError, match="collisions"):
        score_distributions({"collisions": ([0.1], [0, 1])}, ("QCD", "top"))
    with pytest.raises(InputError, match="length"):
        embedding({"PCA": np.zeros((4, 2))}, np.zeros(5, int), ("QCD",))


def test_saving_writes_png_and_pdf_and_leaves_nothing_else(tmp_path):
    with style():
        figure = new_figure()
        figure.subplots().plot([0, 1])
    png, pdf = save(figure, tmp_path / "deep" / "plot", pdf=True)
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert pdf.read_bytes()[:5] == b"%PDF-"
    assert sorted(f.name for f in png.parent.iterdir()) == ["plot.pdf", "plot.png"]
    with pytest.raises(InputError, match="bmpx"):
        save(figure, tmp_path / "plot.bmpx")


def test_a_failed_save_keeps_the_old_figure(tmp_path, monkeypatch):
    figure = new_figure()
    (file,) = save(figure, tmp_path / "plot.png")
    before = file.read_bytes()

    def full_disk(*args, **kwargs):
        args[0].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save(figure, file)
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["plot.png"]


def test_drawing_leaves_the_users_settings_and_figures_alone(curves):
    before = dict(mpl.rcParams)
    roc(curves)
    assert dict(mpl.rcParams) == before
    # In a fresh interpreter: no pyplot figure comes into being.
    code = (
        "from jetrep.report.figures import RocCurve, roc; roc([RocCurve('m', 'd', [0.1, 1], [9, 1])]);"
        "import matplotlib.pyplot as plt; raise SystemExit(len(plt.get_fignums()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
