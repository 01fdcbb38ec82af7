"""The sliced Wasserstein distance is a metric with the closed forms it must have."""

import numpy as np
import pytest
import scipy.stats

from sklearn_hyper import metrics
from sklearn_hyper.metrics import sliced_wasserstein_distance


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def directions(n_projections, n_features, seed):
    theta = np.random.RandomState(seed).normal(size=(n_projections, n_features))
    return theta / np.linalg.norm(theta, axis=1, keepdims=True)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 25), (7, 40), (1, 9), (30, 45)])
def test_distance_is_the_mean_of_one_dimensional_ones(rng, n, m):
    X, Y = rng.normal(size=(n, 3)), rng.normal(0.3, 2.0, size=(m, 3))
    expected = [scipy.stats.wasserstein_distance(X @ theta, Y @ theta) for theta in directions(20, 3, seed=5)]
    measured = sliced_wasserstein_distance(X, Y, n_projections=20, random_state=5)
    assert measured == pytest.approx(np.mean(expected), rel=1e-12)


def test_known_value_on_a_line():
    # F differs by 1/2 on (0, 1) and (3, 5), by 0 between; on a line every direction is +-1.
    assert sliced_wasserstein_distance([[0.0], [3.0]], [[1.0], [5.0]]) == pytest.approx(1.5)
    assert sliced_wasserstein_distance([[0.0]], [[0.0], [1.0], [5.0]]) == pytest.approx(2)


def test_translation_moves_every_projection_by_its_share(rng):
    X, v = rng.normal(size=(50, 4)), np.array([1.0, -2.0, 0.0, 0.5])
    expected = np.abs(directions(30, 4, seed=1) @ v).mean()
    assert sliced_wasserstein_distance(X, X + v, n_projections=30, random_state=1) == pytest.approx(expected)


def test_translation_in_the_plane_is_two_over_pi_of_its_length(rng):
    X = rng.normal(size=(20, 2))
    distance = sliced_wasserstein_distance(X, X + np.array([3.0, 4.0]), n_projections=20_000, random_state=0)
    assert distance == pytest.approx(5 * 2 / np.pi, rel=0.01)


def test_distance_of_equal_sets_is_zero_in_any_order(rng):
    X, Y = rng.normal(size=(30, 2)), rng.normal(size=(20, 2))
    assert sliced_wasserstein_distance(X, X) == 0
    # A repeated set is the same distribution, of another size.
    assert sliced_wasserstein_distance(X, np.concatenate([X, X])) == pytest.approx(0, abs=1e-14)
    apart = sliced_wasserstein_distance(X, Y, random_state=0)
    assert sliced_wasserstein_distance(X[::-1], rng.permutation(Y), random_state=0) == pytest.approx(apart)


def test_distance_is_symmetric_and_keeps_the_triangle(rng):
    X, Y, Z = (rng.normal(loc, scale, size=(n, 3)) for loc, scale, n in [(0, 1, 30), (1, 2, 20), (-1, 0.5, 25)])

    def distance(a, b):
        return sliced_wasserstein_distance(a, b, n_projections=10, random_state=0)

    assert distance(X, Y) == pytest.approx(distance(Y, X), rel=1e-12)
    assert 0 < distance(X, Z) < distance(X, Y) + distance(Y, Z)


def test_distance_scales_and_hardly_feels_a_rotation(rng):
    X, Y = rng.normal(size=(40, 2)), rng.normal(1.0, 2.0, size=(30, 2))
    c, s = np.cos(0.7), np.sin(0.7)
    rotation = np.array([[c, -s], [s, c]])
    distance = sliced_wasserstein_distance(X, Y, n_projections=20_000, random_state=0)
    rotated = sliced_wasserstein_distance(X @ rotation, Y @ rotation, n_projections=20_000, random_state=1)
    assert rotated == pytest.approx(distance, rel=0.01)
    scaled = sliced_wasserstein_distance(3 * X, 3 * Y, n_projections=50, random_state=0)
    assert scaled == pytest.approx(3 * sliced_wasserstein_distance(X, Y, n_projections=50, random_state=0))


def test_normal_distributions_of_two_spreads_are_apart_by_their_difference(rng):
    # Projections are N(0, a^2) and N(0, b^2): W_1 = |a - b| E|N(0, 1)|.
    X, Y = rng.normal(size=(20_000, 2)), 1.5 * rng.normal(size=(20_000, 2))
    distance = sliced_wasserstein_distance(X, Y, n_projections=50, random_state=0)
    assert distance == pytest.approx(0.5 * np.sqrt(2 / np.pi), rel=0.03)


def test_memory_is_bounded_and_chunks_change_nothing(rng, monkeypatch):
    X, Y = rng.normal(size=(30, 2)), rng.normal(size=(20, 2))
    whole = sliced_wasserstein_distance(X, Y, n_projections=17, random_state=0)
    sizes = []
    measure = metrics._wasserstein
    monkeypatch.setattr(metrics, "_PROJECTED_VALUES", 200)
    monkeypatch.setattr(metrics, "_wasserstein", lambda u, v: sizes.append(u.size + v.size) or measure(u, v))
    assert sliced_wasserstein_distance(X, Y, n_projections=17, random_state=0) == pytest.approx(whole, rel=1e-14)
    assert sizes == [200] * 4 + [50]


def test_a_seed_fixes_the_directions(rng):
    X, Y = rng.normal(size=(30, 3)), rng.normal(size=(20, 3))
    first, same, other = (sliced_wasserstein_distance(X, Y, n_projections=5, random_state=s) for s in (0, 0, 1))
    assert first == same != other


@pytest.mark.parametrize(
    ("X", "Y", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 1)), "same number of features, got 2 and 1"),
        (np.zeros((0, 2)), np.zeros((3, 2)), "minimum of 1 is required"),
        (np.zeros((3, 2)), np.full((3, 2), np.inf), "Y contains infinity"),
        (np.zeros(3), np.zeros(3), "Expected 2D array"),
    ],
)
def test_bad_samples_are_refused(X, Y, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein_distance(X, Y)


@pytest.mark.parametrize("n_projections", [0, -1, 2.5])
def test_numbers_of_projections_are_positive_integers(n_projections):
    with pytest.raises(ValueError, match="n_projections must be an integer of at least 1, got"):
        sliced_wasserstein_distance([[0.0]], [[1.0]], n_projections=n_projections)
