import numpy as np
import pytest

from jetrep.studies.protocol import _read_scores


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scores.npz"
    np.savez(path, key=np.array("settings"), simulation=np.linspace(0, 1, 50))
    return path


def test_scores_are_found_again_under_the_same_key_alone(file):
    found = _read_scores(file, "settings")
    assert list(found) == ["simulation"]
    np.testing.assert_array_equal(found["simulation"], np.linspace(0, 1, 50))
    assert _read_scores(file, "others") is None


def test_damaged_scores_are_as_good_as_none(file, tmp_path):
    assert _read_scores(tmp_path / "nowhere.npz", "settings") is None
    content = file.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 10):
        file.write_bytes(content[:cut])
        assert _read_scores(file, "settings") is None
    file.write_bytes(content[:200] + bytes(100) + content[300:])
    assert _read_scores(file, "settings") is None
