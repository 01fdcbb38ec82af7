"""
From a fit to a file that needs no torch
========================================

A hypersolver is a fixed number of small matrix products, and so, unlike an adaptive solver, it can be written down as a
graph. Here a fitted one becomes an ONNX file, which another process runs with ONNX Runtime and NumPy alone: for a small
device, a server in another language, or a loop that has no milliseconds to spare.

Run it with ``python examples/plot_onnx_export.py``; it takes about a minute on one core and needs
``pip install "sklearn-hyper[onnx]"``.
"""

# %%
# Fit
# ---
# A Neural ODE learns to tell two moons apart, and a hypersolver to do its work in four evaluations of its field.

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import make_moons

from sklearn_hyper import HypersolverClassifier, NeuralODEClassifier
from sklearn_hyper.numerics import time_interleaved

torch.set_num_threads(1)  # one sample at a time: there is nothing to share
X, y = make_moons(800, noise=0.15, random_state=0)
X, labels = X.astype(np.float32), np.array(["upper", "lower"])[y]
X_train, X_test, y_train, y_test = X[:600], X[600:], labels[:600], labels[600:]

slow = NeuralODEClassifier(max_epochs=40, random_state=0).fit(X_train, y_train)
fast = HypersolverClassifier(slow, n_steps=4, max_epochs=40, random_state=0).fit(X_train)
print(f"test accuracy: dopri5 {slow.score(X_test, y_test):.3f}, hypersolver {fast.score(X_test, y_test):.3f}")

# %%
# Export
# ------
# ``export_onnx`` runs the file beside torch before it writes it, here on the training rows, and raises where they
# disagree. The file takes any number of rows. Labels are no numbers, so a classifier's file gives logits and
# probabilities, and names the columns.

folder = tempfile.TemporaryDirectory()
path = fast.export_onnx(Path(folder.name) / "moons.onnx", X=X_train)
print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")

# %%
# Run it elsewhere
# ----------------
# This program would fail on ``import torch`` or ``import sklearn_hyper``: both are blocked before it starts.

program = """
import sys
sys.modules.update(dict.fromkeys(["torch", "sklearn", "sklearn_hyper"]))  # importing one of them is an error from here on

import json, statistics, time
import numpy as np, onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession("moons.onnx", options, providers=["CPUExecutionProvider"])
X = np.load("X.npy")
classes = np.array(json.loads(session.get_modelmeta().custom_metadata_map["classes"]))
probabilities = session.run(["probabilities"], {"X": X})[0]
np.save("probabilities.npy", probabilities)

seconds, one = [], X[:1]
for _ in range(3000):
    start = time.perf_counter()
    session.run(["probabilities"], {"X": one})
    seconds.append(time.perf_counter() - start)
print(json.dumps({"labels": classes[probabilities.argmax(axis=1)].tolist(), "ms": 1e3 * statistics.median(seconds)}))
"""
np.save(Path(folder.name) / "X.npy", X_test)
process = subprocess.run(
    [sys.executable, "-c", program], cwd=folder.name, check=True, capture_output=True, text=True
)  # fmt: skip
elsewhere = json.loads(process.stdout)
probabilities = np.load(Path(folder.name) / "probabilities.npy")
print(f"largest difference of a probability: {abs(probabilities - fast.predict_proba(X_test)).max():.1e}")
print(f"labels that agree: {np.mean(fast.predict(X_test) == elsewhere['labels']):.0%}")

# %%
# Time it
# -------
# A single sample, in milliseconds. dopri5 is torchdiffeq's at a tolerance of 1e-5.

module, ode, one = fast.to_module().fold(), slow.neural_ode_, torch.from_numpy(X_test[:1])
with torch.no_grad():
    ms = time_interleaved(
        {
            "dopri5": lambda: ode(one, rtol=1e-5, atol=1e-5),
            "predict": lambda: fast.predict(X_test[:1]),
            "folded module": lambda: module(one),
        }
    )
ms["ONNX file"] = elsewhere["ms"]
for name, value in ms.items():
    print(f"{name:<14}{value:8.3f} ms   {ms['dopri5'] / value:6.1f} times as fast as dopri5")

figure, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
ax.plot(list(ms.values()), list(ms), "o", markersize=9)
for name, value in ms.items():
    ax.annotate(f"{value:.2g} ms", (value, name), xytext=(8, 0), textcoords="offset points", va="center")
ax.set_xscale("log")
ax.margins(x=0.15, y=0.15)
ax.grid(axis="x", alpha=0.3)
ax.invert_yaxis()
ax.set_xlabel("milliseconds for one sample")
ax.set_title("Two moons, four evaluations and a correction")

if plt.get_backend().lower() == "agg":  # no window to show it in: leave the picture beside where this was run
    figure.savefig("onnx_export.png", dpi=120)
    print("Picture saved to onnx_export.png.")
plt.show()
folder.cleanup()
