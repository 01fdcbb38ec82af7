"""Densities in the picture are those of the estimators, on one grid and one scale."""

import builtins

import numpy as np
import pytest
from matplotlib import pyplot
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_hyper.datasets import density_log_prob, make_density
from sklearn_hyper.evaluation import DensityDisplay

LIMITS = (-5.0, 5.0, -5.0, 5.0)  # the truth is not at their centre, so that swapped axes show


class Truth:
    """The 8 gaussians as an estimator, moved by (0, 1), that keeps the seeds it is given."""

    n_features_in_ = 2
    shift = np.array([0.0, 1.0])

    def __init__(self):
        self.seeds = []

    def sample(self, n_samples=1, random_state=None):
        self.seeds.append(random_state)
        return make_density("8gaussians", n_samples, random_state) + self.shift

    def score_samples(self, X):
        return density_log_prob("8gaussians", X - self.shift)


class Diverging(Truth):
    def sample(self, n_samples=1, random_state=None):
        return np.where(np.arange(n_samples)[:, None] < 3, np.nan, super().sample(n_samples, random_state))

    def score_samples(self, X):
        return np.where(X[:, 0] > 0, np.nan, super().score_samples(X))


@pytest.fixture(scope="module")
def data():
    return make_density("8gaussians", 2000, random_state=0) + Truth.shift


@pytest.fixture(scope="module")
def mixture(data):
    return GaussianMixture(8, random_state=0).fit(data)


@pytest.fixture(scope="module")
def kernel(data):
    return KernelDensity(bandwidth=0.2).fit(data)


def mass(display):
    left, right, bottom, top = display.limits
    return {
        name: density.sum() * (right - left) * (top - bottom) / density.size
        for name, density in display.densities.items()
    }


# --- what is drawn ------------------------------------------------------------------------------------------------


def test_histograms_count_every_sample_within_the_limits(data, mixture, kernel):
    display = DensityDisplay.from_estimators(
        {"mixture": mixture, "kernel": kernel},
        data,
        n_samples=3000,
        n_grid=40,
        limits=(-10, 10, -9, 11),
        random_state=0,
    )
    assert list(display.densities) == ["data", "mixture", "kernel"]
    assert mass(display) == pytest.approx({"data": 1, "mixture": 1, "kernel": 1}, abs=1e-12)
    counts = display.densities["kernel"] * 3000 * 0.5**2
    assert np.allclose(counts, np.round(counts)) and round(counts.sum()) == 3000


def test_what_lies_outside_is_missing_from_the_mass(data, mixture):
    display = DensityDisplay.from_estimators({"mixture": mixture}, data, limits=(0, 10, -9, 11), n_samples=100)
    assert mass(display)["data"] == pytest.approx(np.mean(data[:, 0] >= 0))


def test_densities_integrate_to_one(data, mixture, kernel):
    display = DensityDisplay.from_estimators(
        {"mixture": mixture, "kernel": kernel, "truth": Truth()}, kind="density", limits=LIMITS
    )
    assert mass(display) == pytest.approx({"mixture": 1, "kernel": 1, "truth": 1}, abs=1e-3)


def test_rows_are_the_second_feature_and_cells_are_scored_at_their_centres():
    display = DensityDisplay.from_estimators({"truth": Truth()}, kind="density", limits=LIMITS, n_grid=50)
    density = display.densities["truth"]
    centre = np.array([[-5 + 31.5 * 0.2, -5 + 7.5 * 0.2]])
    assert density[7, 31] == pytest.approx(np.exp(Truth().score_samples(centre))[0], rel=1e-9)
    samples = DensityDisplay.from_estimators(
        {"truth": Truth()}, limits=LIMITS, n_grid=50, n_samples=100_000, random_state=0
    )
    # The largest cells hold some 600 samples, to 4 % of their density.
    assert np.abs(samples.densities["truth"] - density).max() < 0.2 * density.max()
    assert np.abs(samples.densities["truth"] - density.T).max() > 0.5 * density.max()


def test_limits_are_around_the_first_panel_without_strays(data, mixture):
    stray = np.concatenate([data, [[1000.0, -1000.0]]])
    limits = DensityDisplay.from_estimators({"mixture": mixture}, stray, n_samples=10).limits
    left, right, bottom, top = limits
    assert -5 < left < -3 < 3 < right < 5 and -4 < bottom < -2 < 4 < top < 6
    first, second = (DensityDisplay.from_estimators({"a": e, "b": mixture}, random_state=0) for e in (Truth(), mixture))
    assert np.allclose(first.limits, limits, atol=0.3)
    assert first.limits != second.limits


def test_a_constant_feature_still_has_limits():
    X = np.column_stack([np.full(10, 3.0), np.arange(10.0)])
    left, right, bottom, top = DensityDisplay.from_estimators({"truth": Truth()}, X, n_samples=10).limits
    assert (left, right) == (2.0, 4.0) and bottom < 0 < 9 < top


def test_one_seed_goes_to_every_estimator_that_takes_one(mixture):
    first, second = Truth(), Truth()
    estimators = {"first": first, "second": second, "frozen": FrozenEstimator(first), "mixture": mixture}
    display = DensityDisplay.from_estimators(estimators, random_state=7, n_samples=200)
    again = DensityDisplay.from_estimators(estimators, random_state=7, n_samples=200)
    assert len({*first.seeds, *second.seeds}) == 1 and len(first.seeds) == 4
    assert np.array_equal(display.densities["first"], display.densities["second"])
    assert all(np.array_equal(display.densities[name], again.densities[name]) for name in ("first", "frozen"))
    DensityDisplay.from_estimators({"first": first}, random_state=8, n_samples=200)
    assert len(set(first.seeds)) == 2


def test_a_search_stands_for_its_best_estimator(data):
    search = GridSearchCV(KernelDensity(), {"bandwidth": [0.2, 2.0]}, cv=2).fit(data)
    display = DensityDisplay.from_estimators(
        {"search": search, "best": search.best_estimator_}, n_samples=200, random_state=0
    )
    assert np.array_equal(display.densities["search"], display.densities["best"])


# --- how it is drawn ----------------------------------------------------------------------------------------------


def test_panels_share_limits_and_the_first_ones_scale(data, mixture, kernel):
    display = DensityDisplay.from_estimators({"mixture": mixture, "kernel": kernel}, data, kind="density")
    assert [ax.get_title() for ax in display.axes_] == ["data", "mixture", "kernel"]
    assert display.axes_.shape == (3,) and len(display.images_) == 3
    for image, density in zip(display.images_, display.densities.values(), strict=True):
        assert image.get_clim() == (0, display.densities["data"].max())
        assert tuple(image.get_extent()) == display.limits
        assert np.array_equal(image.get_array(), density)
        assert image.origin == "lower"
    assert all(ax.figure is display.figure_ for ax in display.axes_)


def test_plot_draws_on_the_axes_given(mixture):
    figure, axes = pyplot.subplots(2, 1)
    display = DensityDisplay.from_estimators({"a": mixture, "b": mixture}, n_samples=50, axes=axes)
    assert display.figure_ is figure and display.axes_.tolist() == axes.tolist()
    assert display.plot(list(axes), cmap="magma") is display
    assert display.images_[0].get_cmap().name == "magma"
    _, ax = pyplot.subplots()
    assert DensityDisplay({"one": np.ones((2, 2))}, LIMITS).plot(ax).axes_.tolist() == [ax]


def test_a_display_is_drawn_to_a_file(tmp_path, data, mixture):
    display = DensityDisplay.from_estimators({"mixture": mixture}, data, n_samples=50)
    display.figure_.savefig(tmp_path / "densities.png")
    assert (tmp_path / "densities.png").stat().st_size > 1000


# --- values that are not finite -----------------------------------------------------------------------------------


def test_samples_that_are_not_finite_are_counted_and_left_out(data):
    with pytest.warns(UserWarning, match=r"^fast: 3 of 1,000 samples are not finite and left out"):
        display = DensityDisplay.from_estimators(
            {"fast": Diverging()}, limits=(-9, 9, -9, 9), n_samples=1000, random_state=0
        )
    assert mass(display) == pytest.approx({"fast": 0.997})
    with pytest.warns(UserWarning, match="fast: 3 of"):
        assert np.isfinite(DensityDisplay.from_estimators({"fast": Diverging()}, n_samples=1000).limits).all()
    with (
        pytest.warns(UserWarning, match="fast: 3 of 3 samples"),
        pytest.raises(ValueError, match=r"no sample of the first panel is finite.*pass limits"),
    ):
        DensityDisplay.from_estimators({"fast": Diverging()}, n_samples=3)


def test_densities_that_are_not_finite_are_blank():
    with pytest.warns(UserWarning, match=r"^fast: 50 of 100 densities are not finite and left out"):
        display = DensityDisplay.from_estimators({"fast": Diverging()}, kind="density", limits=LIMITS, n_grid=10)
    assert np.isnan(display.densities["fast"][:, 5:]).all() and np.isfinite(display.densities["fast"][:, :5]).all()
    assert display.images_[0].get_clim()[1] == np.nanmax(display.densities["fast"])


def test_zero_density_is_no_missing_one():
    class Board(Truth):
        def score_samples(self, X):
            return density_log_prob("checkerboard", X)

    display = DensityDisplay.from_estimators({"board": Board()}, kind="density", limits=(-5, 5, -5, 5))
    assert set(np.unique(display.densities["board"]).round(12)) == {0.0, 1 / 32}
    assert mass(display)["board"] == pytest.approx(1)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "contour"}, "kind must be one of 'samples', 'density', got 'contour'"),
        ({"n_samples": 0}, "n_samples must be an integer of at least 1, got 0"),
        ({"n_grid": 2.5}, r"n_grid must be an integer of at least 1, got 2\.5"),
        ({"kind": "density"}, "pass the data X, or limits"),
        ({"limits": (0, 0, 1, 2)}, "limits must be finite .* left < right"),
        ({"limits": (0, 1, 2)}, "limits must be finite"),
        ({"limits": (0, 1, 0, np.inf)}, "limits must be finite"),
        ({"axes": [None, None]}, "axes must be one for each of the 1 panels, got 2"),
        ({"X": np.zeros((4, 3))}, "draws 2 features, but X has n_features=3"),
        ({"X": [[0.0, np.nan]]}, "X contains NaN"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, message):
    estimator = Truth()
    with pytest.raises(ValueError, match=message):
        DensityDisplay.from_estimators({"truth": estimator}, **arguments)
    assert estimator.seeds == [] and pyplot.get_fignums() == []


def test_estimators_of_other_widths_are_refused(data):
    wide = KernelDensity().fit(np.column_stack([data, data]))
    with pytest.raises(ValueError, match="draws 2 features, but wide has n_features=4"):
        DensityDisplay.from_estimators({"wide": wide})

    class Wide:  # says no n_features_in_
        def sample(self, n_samples):
            return np.zeros((n_samples, 3))

    with pytest.raises(ValueError, match="but wide has n_features=3"):
        DensityDisplay.from_estimators({"wide": Wide()})


@pytest.mark.parametrize("kind", ["samples", "density"])
def test_a_pipeline_is_told_to_hand_over_its_last_step(data, kind):
    pipeline = make_pipeline(StandardScaler(), KernelDensity()).fit(data)
    with pytest.raises(TypeError, match=r"flow: a Pipeline .* Pass its last step, pipeline\[-1\], and pipeline\[:-1\]"):
        DensityDisplay.from_estimators({"flow": pipeline}, data, kind=kind)
    display = DensityDisplay.from_estimators({"flow": pipeline[-1]}, pipeline[:-1].transform(data), kind=kind)
    assert mass(display)["flow"] > 0.5


@pytest.mark.parametrize(
    ("estimators", "error", "message"),
    [
        ({}, ValueError, "estimators is empty"),
        (Truth(), TypeError, "must be a dict of titles to fitted estimators, got Truth"),
        ({"pca": PCA()}, TypeError, "pca: PCA has no sample; pass a fitted flow"),
        ({"kernel": KernelDensity()}, NotFittedError, "not fitted"),
    ],
)
def test_what_cannot_be_sampled_is_refused(estimators, error, message):
    with pytest.raises(error, match=message):
        DensityDisplay.from_estimators(estimators)


def test_the_datas_title_is_taken(data):
    with pytest.raises(ValueError, match="'data' is the panel of X"):
        DensityDisplay.from_estimators({"data": Truth()}, data)


def test_missing_matplotlib_names_the_extra_before_any_work(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for draw in (DensityDisplay({}, LIMITS).plot, lambda: DensityDisplay.from_estimators({"flow": None})):
        with pytest.raises(ImportError, match=r'DensityDisplay draws .* pip install "sklearn_hyper\[plots\]"'):
            draw()
