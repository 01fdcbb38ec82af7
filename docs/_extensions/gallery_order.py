"""The order of the gallery: first steps first, then what one does with them, then the paper's figures."""

from __future__ import annotations

ORDER = (
    "plot_quickstart.py",
    "plot_bring_your_own_module.py",
    "plot_data_controlled.py",
    "plot_energy.py",
    "plot_flow_densities.py",
    "plot_conditions.py",
    "plot_digits_sampler.py",
    "plot_bounds_and_tolerances.py",
    "plot_train_faster.py",
    "plot_joint.py",
    "plot_follow_a_field.py",
    "plot_pipeline_grid_search.py",
    "plot_solver_under_budget.py",
    "plot_dask_search.py",
    "ray_search.py",
    "plot_onnx_export.py",
    "plot_accuracy_against_nfe.py",
    "plot_wall_clock.py",
    "plot_base_solver_swap.py",
)


class ExampleOrder:
    """Sort key of sphinx-gallery: examples that are not listed come last, by name."""

    def __init__(self, src_dir: str):
        self.src_dir = src_dir

    def __call__(self, filename: str) -> tuple[int, str]:
        return (ORDER.index(filename) if filename in ORDER else len(ORDER), filename)
