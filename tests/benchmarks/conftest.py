"""The folders of benchmarks on the path, at its end: scripts there have plain names."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path += [str(EXAMPLES / "benchmarks"), str(EXAMPLES / "serving")]
