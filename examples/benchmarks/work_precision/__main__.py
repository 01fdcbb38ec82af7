"""Work-precision of hypersolvers and of everything else that solves a fixed field: problems x contenders x cost.

    python examples/benchmarks/work_precision [--jobs 2] [--seeds 3] [--rivals-python PATH] [--data FOLDER] [--quick]

Problems: sampling fields of six two-dimensional densities, by flow matching and by maximum likelihood (FFJORD), a
13-dimensional tabular flow and one of six dimensions, a class-conditional image flow (a U-Net), the digits and MNIST
classifiers, a transformer block, a controlled pendulum, Van der Pol's oscillator, the same under a force and a forced
linear one (these four have no MACs: compared at equal evaluations of f). Contenders: ours; classical one-step and
multistep methods; dopri5 over tolerances, by torchdiffeq and by torchode, and its tsit5; the reference recipes (i) and
(ii), (i) with a g of the paper's size, and torchdyn's HyperEuler; BNS, learned time grids, AMED, fine-tuned copies of f
(SFD; one step is a flow map from f's weights) and flow maps. NeuralSolver's form, which combines past states too, is
BNS's: past states are sums of past evaluations.

Errors are relative L2 errors of terminal states against dopri5 in float64 at 1e-8, on test rows that nothing was fitted
or chosen on, and on rows beyond the fitted range. Costs are evaluations of f (counted), MACs, CPU seconds of the fit
and, in cells of their own that run last and alone ("milliseconds"), wall-clock at batch 1, 256 and 4096. A trained
rival gets the rows that ours are fitted on, their reference trajectories free of charge (recipe (i), as published,
solves dopri5 anew at every iteration: so do the cells of its published budget) and the CPU seconds of its problem; what
every fit took stands in a table. Convolutional problems have one seed for rivals, MNIST one for all, variants and some
rivals one everywhere; time grids, torchdyn and our other base solvers run on one problem of each family. In comparisons
ours is the default, of a rival's variants the one that is best on test rows counts; a rival may use our MACs rounded up
to whole evaluations of f.

torchode and torchdyn live in an environment of their own, whose interpreter is --rivals-python:

    python -m venv PEERS; PEERS/bin/pip install -e . torchode torchdyn

Every cell is kept in raw/work_precision.jsonl.gz, so that a stopped run goes on (--fresh measures all anew: after a
change of budgets, or of the library); seeds are the outer loop, so a partial one tells something. The summary, its
tables and the picture are made from the cells and stand beside that folder; --summary makes them again. Models of flows
and classifiers come from --cache, or are trained first (about half an hour with --jobs 2).
"""

import sys
from pathlib import Path

if (
    not __package__
):  # run by its path: python looks for modules in this folder, and the package is one of the folder above
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from work_precision.command import main

if __name__ == "__main__":
    main(__doc__)
