"""Where a run finds models, data and other packages, and where it leaves what it has fitted."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib

from .cells import Trial
from .loading import LoadedProblem, load
from .peer_jobs import Answer, Job
from .problems import Problem
from .runs import PARTS

BENCHMARKS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Place:
    """Where everything is.

    Parameters
    ----------
    cache : str
        Folder of models.
    data : str, optional
        Folder of data that are not part of the repository.
    peers_python : str, optional
        The interpreter that has other packages.
    share : float
        Of their seconds that rivals get.
    """

    cache: str
    data: str | None = None
    peers_python: str | None = None
    share: float = 1.0

    def load(self, problem: Problem) -> LoadedProblem:
        """A problem ready to be solved."""
        return load(problem, self.cache, self.data, self.share)

    def model_path(self, problem: Problem, label: str) -> Path:
        """Where the fitted contender of seed 0 is kept for timing."""
        return Path(self.cache) / "work_precision" / f"{problem.name} {label}.joblib"

    def keep(self, model: Any, trial: Trial) -> None:
        """Keep a fitted contender of seed 0 for timing."""
        if trial.seed == 0:
            path = self.model_path(trial.problem, trial.contender.label)
            path.parent.mkdir(parents=True, exist_ok=True)
            joblib.dump(model, path)

    def ask_peers(self, loaded: LoadedProblem, jobs: Mapping[Any, Job]) -> dict[Any, Answer]:
        """Answers of peers.py, run by the interpreter that has the packages."""
        with tempfile.TemporaryDirectory() as folder:
            asked, answers = Path(folder) / "jobs.joblib", Path(folder) / "answers.joblib"
            rows = {part: loaded.rows[part] for part in PARTS}
            joblib.dump({"neural_ode": loaded.neural_ode, "rows": rows, "jobs": jobs}, asked)
            # The library may be on this process's path alone.
            path = os.pathsep.join([str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])])
            command = [self.peers_python, "-m", "work_precision.peers", str(asked), str(answers)]
            subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True)
            return joblib.load(answers)
