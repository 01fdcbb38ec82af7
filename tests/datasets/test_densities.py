"""Densities: samples and log densities agree, and the shapes are what their names say."""

import numpy as np
import pytest

from sklearn_hyper.datasets import DENSITIES, density_log_prob, make_density

CLOSED_FORMS = ["8gaussians", "checkerboard", "rings"]


def grid(n_cells=600, half_width=6.0):
    """Cell centres over a square, and the area of a cell."""
    side = half_width * (2 * (np.arange(n_cells) + 0.5) / n_cells - 1)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), (2 * half_width / n_cells) ** 2


@pytest.mark.parametrize("name", DENSITIES)
def test_samples_are_reproducible_and_as_many_as_asked_for(name):
    X = make_density(name, 1001, random_state=3)
    assert (X.shape, X.dtype) == ((1001, 2), np.float64)
    assert np.array_equal(X, make_density(name, 1001, np.random.RandomState(3)))
    assert not np.array_equal(X, make_density(name, 1001, random_state=4))
    assert make_density(name, 1, random_state=0).shape == (1, 2)


@pytest.mark.parametrize("name", DENSITIES)
def test_all_lie_around_the_origin_on_one_scale(name):
    X = make_density(name, 5000, random_state=0)
    assert np.abs(X.mean(axis=0)).max() < 0.4
    assert 3 < np.abs(X).max() < 5


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_integrate_to_one(name):
    points, area = grid()  # cells of 0.02 resolve the rings' noise of 0.08, and squares of two are whole cells
    assert np.exp(density_log_prob(name, points)).sum() * area == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_samples_are_of_the_closed_form(name):
    points, area = grid()
    log_prob = density_log_prob(name, points)
    mass = np.exp(log_prob) * area
    X = make_density(name, 20_000, random_state=0)
    scores = density_log_prob(name, X)
    expected = np.sum(mass * np.where(mass > 0, log_prob, 0))  # minus the entropy
    assert scores.mean() == pytest.approx(expected, abs=4 * scores.std() / np.sqrt(len(X)) + 1e-12)
    # Cells of one half: what falls into each is binomial.
    counts, *_ = np.histogram2d(X[:, 1], X[:, 0], bins=24, range=[[-6, 6]] * 2)
    shares = mass.reshape(24, 25, 24, 25).sum(axis=(1, 3))
    assert (np.abs(counts / len(X) - shares) <= 5 * np.sqrt(shares / len(X)) + 3 / len(X)).all()


def test_checkerboard_is_nothing_off_its_dark_squares():
    off = [[-0.1, 0.1], [1.0, 3.0], [-4.1, -3.0], [4.0, 4.0], [5.0, 1.0]]
    assert (density_log_prob("checkerboard", off) == -np.inf).all()
    assert np.allclose(density_log_prob("checkerboard", [[0.0, 0.0], [-4.0, -4.0]]), -np.log(32))


@pytest.mark.parametrize("name", ["8gaussians", "rings"])
def test_far_points_have_a_finite_log_density(name):
    assert np.isfinite(density_log_prob(name, [[0.0, 0.0], [100.0, -100.0]])).all()


def test_moons_are_two_half_circles():
    X = make_density("moons", 20_000, random_state=0)
    upper, lower = X - [-1.0, -0.2], X - [1.0, 0.8]
    radii = np.stack([np.linalg.norm(upper, axis=1), np.linalg.norm(lower, axis=1)])
    off = np.abs(radii - 2).min(axis=0)
    assert (off < 1.0).all() and np.mean(off < 0.4) > 0.95  # two standard deviations of the noise


def test_pinwheel_has_five_blades_alike():
    X = make_density("pinwheel", 50_000, random_state=0)
    untwisted = np.angle(X @ [1, 1j]) + 0.25 * np.exp(np.linalg.norm(X, axis=1) / 2)
    blades = np.round(5 * untwisted / (2 * np.pi)).astype(int) % 5
    assert np.allclose(np.bincount(blades) / len(X), 1 / 5, atol=0.01)
    off_blade = 5 * untwisted / (2 * np.pi) - np.round(5 * untwisted / (2 * np.pi))
    assert np.mean(np.abs(off_blade) < 0.25) > 0.95


def test_spirals_are_two_arms_that_wind_one_and_a_half_times():
    X = make_density("spirals", 20_000, random_state=0)
    # Along an arm the angle is pi less three times the radius; the arms are half a turn apart.
    angle = np.angle(X @ [1, 1j]) + 3 * np.linalg.norm(X, axis=1) - np.pi
    off_arm = (angle + np.pi / 2) % np.pi - np.pi / 2
    outside = np.linalg.norm(X, axis=1) > 1
    assert np.mean(np.abs(off_arm[outside]) < 1.0) > 0.95
    assert np.abs(np.mean(X[:, 0] > 0) - 0.5) < 0.02
    assert np.linalg.norm(X, axis=1).max() == pytest.approx(np.pi, abs=0.7)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["2spirals", None, ["moons"]])
def test_unknown_names_are_told_the_known_ones(name):
    with pytest.raises(ValueError, match=r"name must be one of '8gaussians', 'checkerboard', 'pinwheel', .* got"):
        make_density(name)


@pytest.mark.parametrize("n_samples", [0, -3, 2.0, "5"])
def test_numbers_of_samples_are_positive_integers(n_samples):
    with pytest.raises(ValueError, match="n_samples must be an integer of at least 1, got"):
        make_density("moons", n_samples)


def test_log_density_without_a_closed_form_is_refused():
    with pytest.raises(ValueError, match="closed form must be one of '8gaussians', 'checkerboard', 'rings', got 'moon"):
        density_log_prob("moons", [[0.0, 0.0]])


@pytest.mark.parametrize(
    ("X", "message"),
    [([[1.0, 2.0, 3.0]], "must have 2 features.*got 3"), ([[np.nan, 0.0]], "X contains NaN"), ([1.0, 2.0], "2D array")],
)
def test_log_density_is_of_finite_points_of_the_plane(X, message):
    with pytest.raises(ValueError, match=message):
        density_log_prob("rings", X)
