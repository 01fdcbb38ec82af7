"""
Pipelines, grid search and joblib
=================================

A classifier is in production as a scikit-learn pipeline: a scaler, then a Neural ODE. It answers too slowly. This
example replaces the adaptive solver inside it, without retraining: the fitted pipeline goes in as it is, a grid search
finds the cheapest solver that is good enough, and joblib saves the result.
"""

# %%
# The pipeline as it stands
# -------------------------
# The features of the breast cancer data differ widely in scale, so the scaler is part of the model: the vector field
# only knows scaled coordinates.

import tempfile
import warnings
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_hyper import HypersolverClassifier, NeuralODEClassifier
from sklearn_hyper.evaluation import agreement_scorer, cheapest_within, neg_mape_scorer, neg_nfe_scorer
from sklearn_hyper.numerics import ConditioningWarning, resolve_base_solver

X, y = load_breast_cancer(return_X_y=True)
print(f"standard deviations of the features: {X.std(axis=0).min():.4f} to {X.std(axis=0).max():.0f}")
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)

pipeline = make_pipeline(StandardScaler(), NeuralODEClassifier(max_epochs=10, random_state=0))
pipeline.fit(X_train, y_train)
print(f"accuracy of the pipeline, solved with dopri5: {pipeline.score(X_test, y_test):.3f}")

# %%
# Search for a solver
# -------------------
# The fitted pipeline is passed directly. Its scaler is applied as fitted, so the hypersolver takes raw features; cross
# validation clones the hypersolver and never unfits, refits or copies the pipeline.
#
# Accuracy would tell these candidates apart badly, since most change no label at all. ``neg_mape_scorer`` compares
# logits with dopri5's, and needs no labels. Grids over named solvers and over orders are separate dicts.
#
# The cheapest candidate within a tolerance is a better choice than the most accurate one. So the search scores the
# cost, too, as evaluations of the vector field, and ``refit`` chooses.

grid = [
    {"base_solver": ["euler"], "n_steps": [1, 2, 4]},
    {"base_solver": ["midpoint"], "n_steps": [1, 2]},
    {"order": [3, 4], "n_steps": [1]},
]

# %%
# Every candidate needs dopri5 solutions of the same rows, to learn from and to be scored against. ``memory`` computes
# each once; the folder may also outlive the session.

cache = tempfile.TemporaryDirectory()
tolerance = 0.03
search = GridSearchCV(
    HypersolverClassifier(pipeline, max_epochs=30, memory=joblib.Memory(cache.name, verbose=0), random_state=0),
    grid,
    scoring={"neg_mape": neg_mape_scorer, "neg_nfe": neg_nfe_scorer},
    refit=cheapest_within(tolerance, metric="neg_mape", cost="neg_nfe"),
    cv=3,
)
with warnings.catch_warnings():
    # High orders leave small residuals, whose targets are then solved for more tightly. That is all it says.
    warnings.simplefilter("ignore", ConditioningWarning)
    search.fit(X_train)

n_candidates = len(search.cv_results_["params"])
n_solves = len(list(Path(cache.name).rglob("output.pkl")))
print(f"{n_candidates} candidates, each fitted and scored on 3 folds, and one refit")
print(f"reference solutions asked for: at least {6 * n_candidates + 1}; computed: {n_solves}")

# %%
# What the search saw
# -------------------

results = search.cv_results_
measured = list(zip(results["params"], -results["mean_test_neg_nfe"], -results["mean_test_neg_mape"], strict=True))
for params, nfe, mape in measured:
    print(f"NFE {nfe:.0f}   MAPE {mape:.4f}   {params}")
print("chosen:", search.best_params_)

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for params, nfe, mape in measured:
    solver = resolve_base_solver(params.get("base_solver", "auto"), params.get("order"))
    color = "C1" if params == search.best_params_ else "C0"
    ax.plot(nfe, mape, "o", color=color)
    label = f"{solver.name}, K={params['n_steps']}"
    ax.annotate(label, (nfe, mape), xytext=(6, 2), textcoords="offset points", fontsize=8)
ax.axhline(tolerance, color="grey", linestyle=":", linewidth=1, label="tolerance")
ax.set(
    xlabel="evaluations of the vector field a prediction (NFE)",
    ylabel="MAPE of the logits against dopri5",
    yscale="log",
    xlim=(0.7, 4.9),
    xticks=[1, 2, 3, 4],
    title="Cross-validated score and cost; the chosen one in orange",
)
ax.legend()

# %%
# Compare with the original pipeline
# ----------------------------------
# On rows that neither has seen. Both take raw features.

fast = search.best_estimator_
difference = np.abs(fast.predict_proba(X_test) - pipeline.predict_proba(X_test)).max()
print(f"same label as the pipeline:  {agreement_scorer(fast, X_test):.1%} of {len(X_test)} test rows")
print(f"largest change of a probability: {difference:.4f}")
print(f"accuracy: {pipeline.score(X_test, y_test):.3f} before, {fast.score(X_test, y_test):.3f} now")
print(fast.solver_report(X_test, y_test))

# %%
# Save and load
# -------------
# The file holds all that a prediction needs, the pipeline's scaler among it.

path = Path(cache.name) / "fast.joblib"
joblib.dump(fast, path)
loaded = joblib.load(path)
same = np.array_equal(loaded.predict_proba(X_test), fast.predict_proba(X_test))
print(f"{path.stat().st_size / 1024:.0f} KiB on disk; identical probabilities after loading: {same}")
cache.cleanup()
plt.show()
