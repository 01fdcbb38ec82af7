"""What a net's inputs are scaled by belongs to a task; its weights may be shared by many."""

import copy
import pickle

import pytest
import torch
from problems import largest
from small_corrections import (
    CASES,
    DOUBLE,
    SPAN,
    SPECS,
    apply,
    controlled_field,
    make_correction,
    make_net,
    make_steps,
    plan_of,
)
from torch import nn

from sklearn_hyper import MLPCorrection, alpha_family
from sklearn_hyper.modules import BoundedCorrection, ScaleSample
from sklearn_hyper.modules.corrections import fit_units
from sklearn_hyper.modules.corrections.scales import ErrorRanges, InputScales
from sklearn_hyper.modules.serialization import pack, unpack
from sklearn_hyper.numerics import StepKind, compute_residuals, resolve_base_solver

each_spec = pytest.mark.parametrize(("spec", "shape"), SPECS.values(), ids=SPECS)


def scaled(steps, size):
    """Steps of states and stages of another size."""
    return [step.each(lambda t: size * t) for step in steps]


# --- shifts and scales ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["vector", "vector-controlled", "matrix", "image-flat"])
def test_features_have_mean_zero_and_deviation_one(case):
    spec, shape, x_shape = CASES[case]
    x = None if x_shape is None else torch.randn(6, *x_shape, dtype=DOUBLE)
    steps = make_steps(shape, x=x)
    net = make_net(spec, steps, x)
    features = torch.cat([net._join(net._features(s.eps, s.z, s.stages, x, s.kind)) for s in steps])
    h = net.scales.normalize(features)
    assert h.shape == (24, net.layout.n_in)
    assert largest(h.mean(dim=0)) < 1e-10 and largest(h.std(dim=0, unbiased=False) - 1) < 1e-10


def test_image_features_are_scaled_and_not_shifted():
    """Convolutions pad with zeros."""
    steps = make_steps((2, 4, 5))
    net = make_net(SPECS["image"][0], steps)
    features = torch.cat([net._join(net._features(s.eps, s.z, s.stages, None, s.kind)) for s in steps])
    h = net.scales.normalize(features)
    assert not net.scales.shift.any()
    assert largest(h.std(dim=(0, 2, 3), unbiased=False) - 1) < 1e-10


@pytest.mark.parametrize("size", [1e-12, 1e12])
@each_spec
def test_a_net_reads_the_same_whatever_the_units_of_the_states(spec, shape, size):
    steps = make_steps(shape)
    net, other = make_net(spec, steps, std=0.3), make_net(spec, scaled(steps, size))
    other.load_state_dict(net.state_dict() | {k: v for k, v in other.state_dict().items() if k.startswith("scales")})
    for step, theirs in zip(steps, scaled(steps, size), strict=True):
        torch.testing.assert_close(apply(other, theirs), apply(net, step), rtol=1e-9, atol=1e-9)


def test_a_feature_that_is_constant_keeps_its_size_as_a_unit():
    """Rounding is no deviation to divide by."""
    steps = [step._replace(z=torch.full_like(step.z, 1e6)) for step in make_steps((3,))]
    scales = make_net(MLPCorrection(hidden=4), steps).scales
    assert largest(scales.scale[:3] - 1e-6) < 1e-12 and largest(scales.shift[:3] - 1e6) < 1e-3


def test_time_and_step_sizes_are_shares():
    """Of the span, from -1 to 1, and of the largest step."""
    steps, span = make_steps((3,), n_steps=4), (10.0, 20.0)
    scales = make_net(MLPCorrection(hidden=4), steps).with_scales(ScaleSample(steps, None, span)).scales
    times = torch.tensor([10.0, 15.0, 20.0], dtype=torch.float64)
    assert scales.time_share(times).tolist() == [-1.0, 0.0, 1.0] and scales.eps_max == 0.25
    backwards = make_net(MLPCorrection(hidden=4), steps).with_scales(ScaleSample(steps, None, span[::-1])).scales
    assert backwards.time_share(times).tolist() == [-1.0, 0.0, 1.0]


def test_times_far_from_zero_keep_their_digits():
    scales = InputScales(3)
    scales.middle, scales.per_half = 1.7e9 + 7.5, 2 / 15
    share = scales.time_share(torch.tensor(1.7e9 + 3.75, dtype=torch.float64))
    assert share.dtype == torch.float32 and share.item() == pytest.approx(-0.5, abs=1e-6)


def test_features_that_a_step_lacks_are_zero():
    scales = InputScales(4)
    scales.shift += 2.0
    h = scales.normalize(torch.full((3, 2), 5.0))
    assert h.tolist() == [[3.0, 3.0, 0.0, 0.0]] * 3


# --- leading errors -------------------------------------------------------------------------------------------------


def kind_at(alpha):
    return resolve_base_solver(alpha_family(alpha)).main_kind


def test_leading_errors_go_from_minus_one_to_one_over_a_family():
    """Of the alpha family, that of alpha is alpha / 2 and 0."""
    ranges = ErrorRanges.of([kind_at(alpha) for alpha in (0.2, 1.0, 0.5)])
    assert [pytest.approx(pair) for pair in ((0.1, 0.5), (0.0, 0.0))] == list(ranges.ranges)
    assert [ranges.scale(kind_at(alpha)) for alpha in (0.2, 0.6, 1.0)] == [
        pytest.approx(pair, abs=1e-12) for pair in ((-1.0, 0.0), (0.0, 0.0), (1.0, 0.0))
    ]
    assert [ranges.cover(kind_at(alpha)) for alpha in (0.1, 0.2, 0.7, 1.0, 1.1)] == [False, True, True, True, False]


def test_a_family_of_one_has_a_range_of_one():
    ranges = ErrorRanges.of([kind_at(0.5)])
    assert ranges.scale(kind_at(0.5)) == (0.0, 0.0)
    assert ranges.cover(kind_at(0.5)) and not ranges.cover(kind_at(0.6))


def test_a_kind_without_a_tableau_is_covered_by_no_family():
    unknown = StepKind(2, (0.0,), (0.0, -1.0))
    assert not ErrorRanges.of([kind_at(0.2), kind_at(1.0), unknown]).cover(unknown)


# --- nets that share their weights ----------------------------------------------------------------------------------


def two_nets(spec, shape):
    """One net for two tasks, whose states differ in size."""
    steps = make_steps(shape)
    small = make_net(spec, steps, std=0.3)
    large = small.with_scales(ScaleSample(scaled(steps, 100.0), None, SPAN))
    return small, large, steps


@each_spec
def test_a_net_with_other_scales_has_the_same_weights_and_its_own_scales(spec, shape):
    small, large, steps = two_nets(spec, shape)
    assert large is not small and type(large) is type(small)
    assert [id(p) for p in large.parameters()] == [id(p) for p in small.parameters()]
    assert largest(large.scales.scale * 100 - small.scales.scale) < 1e-6 * largest(small.scales.scale)
    assert largest(apply(small, steps[1]) - apply(large, steps[1])) > 1e-3
    # ... each reads its own task as if it were the only one
    torch.testing.assert_close(apply(large, scaled(steps, 100.0)[1]), apply(small, steps[1]), rtol=1e-9, atol=1e-9)


@each_spec
def test_a_step_of_training_on_one_task_changes_the_net_of_the_other(spec, shape):
    small, large, steps = two_nets(spec, shape)
    before, scales = apply(small, steps[1]).detach(), small.scales.scale.clone()
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    apply(large, scaled(steps, 100.0)[0]).pow(2).mean().backward()
    optimizer.step()
    assert largest(apply(small, steps[1]) - before) > 1e-4
    assert torch.equal(small.scales.scale, scales)


def scale_together(pair, steps):
    """Change the weights of the second; whether both then compute something else."""
    step = steps[1].each(lambda t: t.to(next(pair.parameters()).dtype))
    before = [apply(g, step).detach() for g in pair]
    with torch.no_grad():
        for parameter in pair[1].parameters():
            parameter.mul_(1.1)
    return all(largest(apply(g, step) - out) > 1e-4 * largest(out) for g, out in zip(pair, before, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda pair: pair.float(),
        copy.deepcopy,
        lambda pair: pickle.loads(pickle.dumps(pair)),
        lambda pair: nn.ModuleList(copy.deepcopy(list(pair))),
    ],
    ids=["to", "deepcopy", "pickle", "list"],
)
@each_spec
def test_nets_of_two_tasks_stay_one_in_their_weights(spec, shape, change):
    small, large, steps = two_nets(spec, shape)
    pair = change(nn.ModuleList([small, large]))
    assert len(list(pair.parameters())) == len(list(small.parameters()))
    assert scale_together(pair, steps)


@pytest.mark.parametrize(
    "change",
    [lambda pair: pair.float(), copy.deepcopy, lambda pair: unpack(pack(pair))],
    ids=["to", "deepcopy", "pack"],
)
@each_spec
def test_corrections_of_two_tasks_stay_one_in_their_weights(spec, shape, change):
    """Each with its own units."""
    small, large, steps = two_nets(spec, shape)
    corrections = [BoundedCorrection(net, fit_units(scaled(steps, k))) for net, k in ((small, 1.0), (large, 100.0))]
    pair = change(nn.ModuleList(corrections))
    assert len(list(pair.parameters())) == len(list(small.parameters()))
    one, other = (g.units.scale(steps[1].kind) for g in pair)
    assert largest(other - 100 * one) < 1e-4 * largest(other)
    assert scale_together(pair, steps)


@each_spec
def test_rescaling_leaves_the_net_it_started_from_alone(spec, shape):
    steps = make_steps(shape)
    net = make_net(spec, steps, std=0.3)
    out, scales = apply(net, steps[1]), copy.deepcopy(net.scales.state_dict())
    net.with_scales(ScaleSample(scaled(steps, 7.0), None, (3.0, 4.0)))
    assert torch.equal(apply(net, steps[1]), out)
    assert all(torch.equal(value, scales[key]) for key, value in net.scales.state_dict().items())


def test_scales_are_measured_on_full_steps():
    """Start-up steps lack features; where there are no others, theirs have to do."""
    steps = make_steps((3,), "ab3")
    full = [step for step in steps if step.kind == steps[-1].kind]
    net = make_net(MLPCorrection(hidden=4), steps)
    assert torch.equal(net.scales.scale, net.with_scales(ScaleSample(full, None, SPAN)).scales.scale)
    start = net.with_scales(ScaleSample([steps[0]], None, SPAN)).scales.scale
    known = 3 * (1 + steps[0].kind.n_stages)
    assert torch.equal(start[known:], torch.ones_like(start[known:])) and not (start[:known] == 1).any()


def test_scales_move_and_are_saved_with_the_net():
    steps = make_steps((3,))
    net = make_net(MLPCorrection(hidden=4), steps, std=0.3)
    assert {name for name, _ in net.named_buffers()} == {"scales.shift", "scales.scale"}
    assert net.float().scales.scale.dtype == torch.float32
    other = pickle.loads(pickle.dumps(net))
    assert (other.scales.eps_max, other.scales.middle) == (net.scales.eps_max, net.scales.middle)


def test_the_input_of_a_data_controlled_field_is_scaled_too():
    x = torch.randn(6, 2, dtype=DOUBLE) * 1e3
    steps = make_steps((3,), x=x)
    g = make_correction(MLPCorrection(hidden=6), steps, x, std=0.3)
    assert g.net.scales.scale[3:5].tolist() == pytest.approx((1 / x.std(dim=0, unbiased=False)).tolist())
    (step,) = compute_residuals(controlled_field, torch.stack([steps[0].z] * 2), (0.0, 0.1), "heun", x=x)
    folded = g.fold_step(plan_of(step))
    torch.testing.assert_close(folded(step.eps, step.time(), step.z, step.stages, x), apply(g, step, x))
