"""The benchmarks' folder on the path, at its end: scripts there have plain names."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmarks"))
