"""What the displays share."""

from __future__ import annotations

from typing import Any


def import_pyplot(display: str) -> Any:
    """Import and return pyplot, which is optional; ``display`` is the class named in the error.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            f'{display} draws with matplotlib, which is not installed: pip install "sklearn_hyper[plots]".'
        ) from error
    return pyplot


def take_axes(display: str, ax: Any) -> Any:
    """Return the axes to draw in: those that were given, or those of a new figure."""
    pyplot = import_pyplot(display)
    return pyplot.subplots(layout="constrained")[1] if ax is None else ax
