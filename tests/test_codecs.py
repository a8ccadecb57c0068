"""Each codec against its own definition; what all share is in the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir_faiss.base import registry
from cbir_faiss.codecs._hadamard import HadamardRotation, hadamard
from cbir_faiss.codecs._itq import _halley_weights, itq_rotation, polar
from cbir_faiss.codecs._training import principal_components
from cbir_faiss.codecs.ksh import _climb, _greedy, _supervision, _whitener
from cbir_faiss.errors import ConfigError, InputError
from cbir_faiss.testing import CodecContract


class TestItq(CodecContract):
    plugin = registry.load("codecs", "itq")
    options = {"bits": 16}


class TestPcaSign(CodecContract):
    plugin = registry.load("codecs", "pca-sign")
    options = {"bits": 16}


class TestSpectralHashing(CodecContract):
    plugin = registry.load("codecs", "sh")
    options = {"bits": 64}


class TestKernelSupervisedHashing(CodecContract):
    plugin = registry.load("codecs", "ksh")
    options = {"bits": 16, "anchors": 50}


class TestSign(CodecContract):
    plugin = registry.load("codecs", "sign")
    dim = 30


class TestSigmoidMean(CodecContract):
    plugin = registry.load("codecs", "sigmoid-mean")
    dim = 30


class TestThreshold(CodecContract):
    plugin = registry.load("codecs", "threshold")
    dim = 30


class TestRotateItq(CodecContract):
    plugin = registry.load("codecs", "rotate")


class TestRotatePca(CodecContract):
    plugin = registry.load("codecs", "rotate")
    options = {"rotation": "pca"}


class TestRotateHadamard(CodecContract):
    plugin = registry.load("codecs", "rotate")
    options = {"rotation": "hadamard"}
    dim = 100


def decaying(n=600, dim=48, seed=0):
    """float32 ``(n, dim)`` with a decaying spectrum, turned at random and not centred."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return ((rng.standard_normal((n, dim)) / np.sqrt(1 + np.arange(dim))) @ basis + 0.5).astype(np.float32)


def squared_distances(x):
    return ((x[:, None].astype(np.float64) - x[None]) ** 2).sum(axis=2)


# ------------------------------------------------------------------------------------------------------------- Hadamard


@settings(deadline=None, max_examples=40, derandomize=True)
@given(dim=st.integers(1, 300), seed=st.integers(0, 5))
def test_hadamard_rotation_keeps_l2_at_its_padded_width(dim, seed):
    width = HadamardRotation.padded(dim)
    assert dim <= width < dim + 64
    x = np.random.default_rng(seed).standard_normal((9, dim)).astype(np.float32)
    turned = HadamardRotation(dim, width, seed).apply(x)
    assert turned.shape == (9, width)
    np.testing.assert_allclose(squared_distances(turned), squared_distances(x), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(dim=st.integers(1, 200), outputs=st.integers(1, 700))
def test_hadamard_rotation_gives_any_number_of_unit_rows(dim, outputs):
    rows = HadamardRotation(dim, outputs, 3).apply(np.eye(dim, dtype=np.float32)).T
    assert rows.shape == (outputs, dim)
    # A row of length 1 over the padded width may have part of it in the padding, where the vectors are zero.
    assert (np.linalg.norm(rows, axis=1) <= 1 + 1e-5).all()


def test_hadamard_rotation_is_one_linear_map_that_mixes_everything():
    x = np.random.default_rng(0).standard_normal((300, 100)).astype(np.float32)
    rotation = HadamardRotation(100, 2048, 0)
    matrix = rotation.apply(np.eye(100, dtype=np.float32))
    np.testing.assert_allclose(rotation.apply(x), x @ matrix, atol=1e-4)
    assert (np.abs(matrix).max() < 10 * np.abs(matrix).mean()).all()
    assert np.mean(matrix == 0) < 0.05
    assert not np.array_equal(matrix, HadamardRotation(100, 2048, 1).apply(np.eye(100, dtype=np.float32)))
    assert len(rotation.apply(x[:0])) == 0


def test_hadamard_signs_of_two_vectors_differ_as_their_angle_says():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 96)).astype(np.float32)
    bits = HadamardRotation(96, 8192, 0).apply(x) > 0
    apart = (bits[:, None] != bits[None]).mean(axis=2)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    angle = np.arccos(np.clip(unit @ unit.T, -1, 1)) / np.pi
    np.fill_diagonal(angle, 0)
    assert np.abs(apart - angle).max() < 0.05


def test_hadamard_signs_of_a_seed_never_change():
    """Codes on disk depend on them."""
    first = HadamardRotation(70, 70, 42).apply(np.eye(70, dtype=np.float32)[:1])[0, :6]
    expected = [-0.0455752, -0.1450121, 0.1146286, 0.0483374, 0.0151918, -0.0842451]
    np.testing.assert_allclose(first, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("dim", "outputs", "seed", "padded", "expected"),
    [
        (5, 8, 0, 8, [0.08203, 0.57162, 0.68812, -0.49817]),
        (64, 64, 1, 64, [-0.37817, 0.19097, 0.00695, -0.69959]),
        (100, 300, 2, 128, [-0.57909, -1.24908, 0.15294, -0.28257]),
        (192, 256, 3, 192, [0.55367, 0.20443, -0.87999, 0.86224]),
        (640, 640, 7, 640, [1.12106, 0.46118, -0.64562, 0.66783]),
        (20000, 16, 1, 20096, [0.86441, 0.61135, 0.33242, 0.24753]),
    ],
)
def test_hadamard_rotations_of_a_seed_never_change(dim, outputs, seed, padded, expected):
    """Nor do those whose middle matrix is a DCT, is stacked, or has a larger radix."""
    x = np.cos(np.arange(dim, dtype=np.float32))[None]
    turned = HadamardRotation(dim, outputs, seed).apply(x)[0]
    np.testing.assert_allclose(turned[[0, 1, outputs // 2, -1]], expected, atol=2e-5)
    assert HadamardRotation.padded(dim) == padded


def test_hadamard_matrix():
    matrix = hadamard(8)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-6)
    np.testing.assert_allclose(np.abs(matrix), 8**-0.5, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------------ ITQ


@pytest.mark.parametrize("condition", [1, 1e2, 1e4])
def test_polar_factor_is_that_of_the_svd(condition):
    rng = np.random.default_rng(0)
    u, _, vt = np.linalg.svd(rng.standard_normal((40, 64)), full_matrices=False)
    matrix = ((u * np.geomspace(1, 1 / condition, 40)) @ vt).astype(np.float32)
    np.testing.assert_allclose(polar(matrix), u @ vt, atol=1e-6 * condition + 2e-3)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_polar_factor_does_not_depend_on_the_scale(scale):
    matrix = np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32)
    np.testing.assert_allclose(polar(matrix * np.float32(scale)), polar(matrix), atol=5e-3)


def test_polar_factor_of_a_singular_matrix_is_orthonormal():
    matrix = np.zeros((6, 8), np.float32)
    matrix[0, 0] = 1
    for m in (matrix, np.zeros((6, 8), np.float32)):
        factor = polar(m)
        np.testing.assert_allclose(factor @ factor.T, np.eye(6), atol=1e-4)


def test_itq_rotation_is_at_least_as_good_as_many_plain_iterations():
    x = decaying() - decaying().mean(axis=0)
    _, directions, _ = principal_components(x)
    z = (x @ directions[:, :32]).astype(np.float32)
    plain = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))[0]
    for _ in range(50):
        u, _, vt = np.linalg.svd(z.T @ np.sign(z @ plain))
        plain = u @ vt
    ours = itq_rotation(z, 32, iterations=25, seed=0)
    np.testing.assert_allclose(ours @ ours.T, np.eye(32), atol=1e-9)
    # Both maximise the sum; |ZR|² is the same for every rotation.
    assert np.abs(z @ ours).sum() > 0.995 * np.abs(z @ plain).sum()


def test_itq_survives_duplicates():
    few = decaying(5)
    codec = registry.make("codecs", "itq", bits=32).fit(np.repeat(few, 20, axis=0))
    codes = codec.encode(few)
    assert np.isfinite(codec.project(few)).all()
    assert len(np.unique(codes, axis=0)) == 5


def test_learned_codecs_agree_with_a_scaled_input_where_they_normalise():
    x = decaying()
    scaled = x * np.random.default_rng(1).uniform(0.5, 2, (len(x), 1)).astype(np.float32)
    one, two = (registry.make("codecs", "pca-sign", bits=16, normalise=True).fit(v) for v in (x, scaled))
    assert np.mean(np.unpackbits(one.encode(x) ^ two.encode(scaled))) < 0.01
    assert np.isfinite(one.project(np.zeros((1, 48), np.float32))).all()


# ----------------------------------------------------------------------------------------------------- the other codecs


def test_pca_sign_is_the_sign_of_the_components():
    x = decaying()
    codec = registry.make("codecs", "pca-sign", bits=8).fit(x)
    centred = x - x.mean(axis=0)
    _, _, vt = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    cosines = np.abs((codec.state["matrix"] * vt[:8].T).sum(axis=0))
    np.testing.assert_allclose(cosines, 1, atol=1e-3)
    np.testing.assert_allclose(codec.project(x), centred @ codec.state["matrix"], atol=1e-5)


def test_sh_cuts_the_longest_component_first():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.uniform(0, 1, 2000), rng.uniform(0, 0.3, 2000)]).astype(np.float32)
    codec = registry.make("codecs", "sh", bits=8).fit(x)
    assert codec.state["component"][:3].tolist() == [0, 0, 0]
    assert set(codec.state["component"]) == {0, 1}
    bits = np.unpackbits(codec.encode(x), axis=1)
    # The first eigenfunction is positive on one half of the long side, the second on both its outer quarters.
    first, second = x[:, 0] > 0.5, np.abs(x[:, 0] - 0.5) > 0.225
    assert max(np.mean(bits[:, 0] == first), np.mean(bits[:, 0] != first)) > 0.95
    assert np.mean(bits[:, 1] == second) > 0.95


def test_sigmoid_mean_is_equation_3():
    x = decaying(20)
    sigma = 1 / (1 + np.exp(-x.astype(np.float64)))
    expected = sigma - sigma.mean(axis=1, keepdims=True) > 0
    codec = registry.make("codecs", "sigmoid-mean").fit(x)
    assert codec.bits == 48
    np.testing.assert_array_equal(np.unpackbits(codec.encode(x), axis=1), expected)
    assert np.isfinite(codec.project(x * 1e6)).all()


@pytest.mark.parametrize("at", ["median", "mean"])
def test_threshold_cuts_at_the_statistic(at):
    x = decaying(101)
    codec = registry.make("codecs", "threshold", at=at).fit(x)
    bits = np.unpackbits(codec.encode(x), axis=1)
    np.testing.assert_array_equal(bits, x > getattr(np, at)(x, axis=0).astype(np.float32))
    if at == "median":
        assert (bits.sum(axis=0) == 50).all()


def test_sign_is_plain_unless_centred():
    x = decaying()
    np.testing.assert_array_equal(np.unpackbits(registry.make("codecs", "sign").fit(x).encode(x), axis=1), x > 0)
    centred = np.unpackbits(registry.make("codecs", "sign", center=True).fit(x).encode(x), axis=1)
    np.testing.assert_array_equal(centred, x > x.mean(axis=0, dtype=np.float64).astype(np.float32))


def test_a_code_of_30_bits_is_padded_and_keeps_its_length():
    x = decaying(dim=30)
    codec = registry.make("codecs", "sign", center=True).fit(x)
    assert (codec.bits, codec.width) == (30, 32)


@pytest.mark.parametrize("form", ["int", "bool"])
def test_ksh_gives_classes_their_own_codes(form):
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    # Two clusters of each class, so that distance alone cannot tell it.
    centres = rng.standard_normal((8, 16)) * 4
    x = (centres[labels + 4 * rng.integers(0, 2, 400)] + rng.standard_normal((400, 16))).astype(np.float32)
    given_labels = labels if form == "int" else np.eye(4, dtype=bool)[labels]
    codec = registry.make("codecs", "ksh", bits=16, anchors=60).fit(x, given_labels)
    bits = np.unpackbits(codec.encode(x), axis=1).astype(np.int64)
    apart = (bits[:, None] != bits[None]).sum(axis=2)
    same = labels[:, None] == labels[None]
    assert apart[same].mean() < 1
    assert apart[~same].mean() > 4


def test_ksh_leaves_out_what_has_no_label():
    x = decaying(100)
    labels = np.arange(100) % 3
    codec = registry.make("codecs", "ksh", bits=8, anchors=20).fit(x, np.where(labels == 2, -1, labels))
    assert codec.state["anchors"].shape == (20, 48)


# --------------------------------------------------------------------------------------------------------------- rotate


@pytest.mark.parametrize("rotation", ["itq", "pca", "hadamard"])
@pytest.mark.parametrize(("n", "dim"), [(300, 48), (20, 48), (1, 48), (300, 30)])
def test_rotate_keeps_l2_of_vectors_it_never_saw(rotation, n, dim):
    codec = registry.make("codecs", "rotate", rotation=rotation).fit(decaying(n, dim))
    later = decaying(30, dim, seed=5) * 3
    np.testing.assert_allclose(squared_distances(codec.encode(later)), squared_distances(later), rtol=1e-4, atol=1e-4)


def test_rotate_makes_signs_say_something():
    """The sign bits of features that are never negative are all 1; after the rotation they tell neighbours."""
    x = np.maximum(decaying(), 0.01)
    assert len(np.unique(x > 0)) == 1
    turned = registry.make("codecs", "rotate").fit(x).encode(x) > 0
    assert abs(turned.mean() - 0.5) < 0.1
    apart, truth = (turned[:, None] != turned[None]).sum(axis=2), squared_distances(x)
    assert np.corrcoef(apart.ravel(), truth.ravel())[0, 1] > 0.6


def test_a_whitened_kernel_has_orthogonal_columns_of_mean_square_one():
    kernel = np.random.default_rng(0).standard_normal((200, 12)) * np.geomspace(1, 0.01, 12)
    kernel = np.column_stack([kernel, kernel[:, 0]])  # one direction without variance
    white = kernel @ _whitener(kernel)
    np.testing.assert_allclose(white.T @ white / 200, np.eye(12), atol=1e-8)


def test_rotating_changes_the_metric_only_where_it_normalises():
    for normalise, metric, kept in (
        (True, "l2", "cosine"),
        (False, "l2", "l2"),
        (True, "ip", "ip"),
        (False, "ip", "ip"),
    ):
        assert registry.make("codecs", "rotate", normalise=normalise).metric_of(metric) == kept


def test_rotate_normalised_gives_cosine_by_l2():
    x = decaying()
    turned = registry.make("codecs", "rotate", normalise=True).fit(x).encode(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(squared_distances(turned), 2 - 2 * (unit @ unit.T.astype(np.float64)), atol=1e-4)


# ------------------------------------------------------------------------------------------------------------------ pca


@pytest.mark.parametrize("rotate", [False, True])
def test_pca_keeps_what_varies_most(rotate):
    x, later = np.split(decaying(330), [300])
    whole = squared_distances(later)
    lost = []
    for dim in (4, 16, 48):
        kept = squared_distances(registry.make("codecs", "pca", dim=dim, rotate=rotate).fit(x).encode(later))
        assert (kept <= whole + 1e-3).all()
        lost.append(1 - kept.sum() / whole.sum())
    assert lost[0] > lost[1] > abs(lost[2])
    assert abs(lost[2]) < 1e-4
    random = squared_distances(later @ np.linalg.qr(np.random.default_rng(0).standard_normal((48, 16)))[0])
    assert lost[1] < (1 - random.sum() / whole.sum()) / 2


def test_pca_spreads_the_variance_where_it_rotates():
    x = decaying()
    plain, turned = (
        registry.make("codecs", "pca", dim=16, rotate=r).fit(x).encode(x).var(axis=0) for r in (False, True)
    )
    assert (np.diff(plain) < 1e-3).all()
    assert turned.max() / turned.min() < plain.max() / plain.min() / 3
    np.testing.assert_allclose(plain.sum(), turned.sum(), rtol=1e-4)


def test_pca_of_vectors_that_are_all_alike():
    x = np.ones((5, 8), np.float32)
    assert not registry.make("codecs", "pca", dim=4).fit(x).encode(x).any()


@pytest.mark.parametrize(
    ("options", "n", "error", "message"),
    [
        ({"dim": 49}, 300, ConfigError, "at most the 48 dimensions"),
        ({"dim": 40}, 30, InputError, "at least 40 training vectors for 40 dimensions, got 30"),
        ({"dim": 0}, 30, ConfigError, "dim"),
        ({}, 30, ConfigError, "dim: is required"),
    ],
)
def test_pca_refuses_what_there_is_not(options, n, error, message):
    with pytest.raises(error, match=message):
        registry.make("codecs", "pca", **options).fit(decaying(n))


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", ["itq", "pca-sign"])
def test_more_bits_than_dimensions_is_a_config_error(name):
    with pytest.raises(ConfigError, match="at most 48 bits of 48 dimensions"):
        registry.make("codecs", name, bits=64).fit(decaying())


@pytest.mark.parametrize("name", ["itq", "pca-sign"])
def test_too_few_training_vectors(name):
    with pytest.raises(InputError, match="at least 32 training vectors for 32 bits, got 20"):
        registry.make("codecs", name, bits=32).fit(decaying(20))


@pytest.mark.parametrize("name", ["itq", "pca-sign", "sh", "ksh"])
def test_constant_vectors_are_one_clear_error(name):
    x = np.full((50, 16), 0.3, np.float32)
    with pytest.raises(InputError, match="all training vectors are equal"):
        registry.make("codecs", name, bits=8).fit(x, np.arange(50) % 2)


def test_labels_that_ksh_cannot_use():
    x, codec = decaying(50), registry.make("codecs", "ksh", bits=8)
    with pytest.raises(InputError, match="at least two classes"):
        codec.fit(x, np.zeros(50, np.int64))
    with pytest.raises(InputError, match="at least two classes"):
        codec.fit(x, np.ones((50, 2), bool))
    with pytest.raises(InputError, match="takes int labels"):
        codec.fit(x, np.zeros(50, np.float32))


@pytest.mark.parametrize(
    "options", [{"bits": 12}, {"bits": 0}, {"bits": 16, "seed": -1}, {"bits": 16, "iterations": 0}]
)
def test_bad_options_are_config_errors(options):
    with pytest.raises(ConfigError):
        registry.make("codecs", "itq", **options)


def test_a_large_database_is_sampled_with_the_seed():
    x = decaying(2000)
    one, two, three = (
        registry.make("codecs", "pca-sign", bits=8, train_size=200, seed=seed).fit(x) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.state["mean"], two.state["mean"])
    assert not np.array_equal(one.state["mean"], three.state["mean"])


# ---------------------------------------------------------------------------------- what a code is, however it is made


def test_sh_takes_the_smoothest_eigenfunctions_of_the_box():
    x = decaying(500, 12)
    codec = registry.make("codecs", "sh", bits=40).fit(x)
    directions = codec.state["matrix"].astype(np.float64)
    _, _, vt = np.linalg.svd((x - x.mean(axis=0)).astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(np.abs((directions * vt.T).sum(axis=0)), 1, atol=1e-3)
    along = (x - codec.state["mean"]) @ directions
    low, high = np.percentile(along, [5, 95], axis=0)
    waves = sorted((k / (high[j] - low[j]), j, k) for j in range(12) for k in range(1, 41))[:40]
    expected = np.stack([np.cos(k * np.pi * (along[:, j] - low[j]) / (high[j] - low[j])) for _, j, k in waves], axis=1)
    np.testing.assert_allclose(codec.project(x), expected, atol=5e-3)


def test_sh_leaves_out_a_component_that_is_constant_between_the_percentiles():
    x = np.zeros((400, 9), np.float32)
    x[4:, 0] = np.arange(396) % 99
    x[:4, 1] = 1000  # a hundredth of the vectors
    codec = registry.make("codecs", "sh", bits=8, center=False).fit(x)
    assert codec.state["matrix"].shape == (9, 1)
    with pytest.raises(InputError, match="all training vectors are equal"):
        registry.make("codecs", "sh", bits=8, center=False).fit(x * (np.arange(9) == 1))


@pytest.mark.parametrize("condition", [3, 1e2, 1e4])
def test_polar_factor_takes_few_solves_and_no_svd(condition, monkeypatch):
    rng = np.random.default_rng(1)
    u, _, vt = np.linalg.svd(rng.standard_normal((40, 64)), full_matrices=False)
    matrix = ((u * np.geomspace(1, 1 / condition, 40)) @ vt).astype(np.float32)
    solve, solved = np.linalg.solve, []
    monkeypatch.setattr(np.linalg, "solve", lambda a, b: solved.append(1) or solve(a, b))
    monkeypatch.setattr(np.linalg, "svd", None)
    for tolerance in (0.05, 1e-3):
        factor = polar(matrix * 1e3, tolerance)
        assert np.abs(factor @ factor.T - np.eye(40)).max() < tolerance
    assert len(solved) <= 2 * 4


def test_halleys_weights_lift_an_interval_as_near_to_one_as_they_can():
    for lower in (1e-4, 1e-3, 0.05, 0.5, 0.99, 0.9995):
        a, b, c = _halley_weights(lower)
        x = np.geomspace(lower, 1, 20_001)
        lifted = x * (a + b * x**2) / (1 + c * x**2)
        assert lifted[-1] == pytest.approx(1)
        assert lifted.max() == pytest.approx(1, abs=1e-5)
        assert lifted.min() == pytest.approx(lifted[0], rel=1e-3)
        if lower < 0.9:  # above, it is one to within rounding
            # Of the best one the least is met twice: at the lower end, and between two greatest.
            between = 1 - lifted[np.argmax(lifted[:-1]) :].min()
            assert between == pytest.approx(1 - lifted[0], rel=1e-2)


def test_itq_rotation_of_a_seed_needs_few_iterations():
    x = decaying() - decaying().mean(axis=0)
    _, directions, _ = principal_components(x)
    z = (x @ directions[:, :32]).astype(np.float32)
    sums = [np.abs(z @ itq_rotation(z, 32, iterations, seed=0)).sum() for iterations in (1, 8, 20, 60)]
    assert sums == sorted(sums)
    assert sums[1] > 0.985 * sums[-1]
    assert sums[2] > 0.993 * sums[-1]
    assert not np.array_equal(itq_rotation(z, 32, 3, seed=0), itq_rotation(z, 32, 3, seed=1))
    random = np.linalg.qr(np.random.default_rng(5).standard_normal((32, 32)))[0]  # where it begins
    np.testing.assert_allclose(itq_rotation(z, 32, 0, seed=5), random, atol=1e-6)
    wide = itq_rotation(z[:, :20], 32, 10, seed=0)  # fewer components than bits
    np.testing.assert_allclose(wide @ wide.T, np.eye(20), atol=1e-9)


def test_longer_steps_of_itq_get_further(monkeypatch):
    x = decaying(2000) - decaying(2000).mean(axis=0)
    z = (x @ principal_components(x)[1][:, :32]).astype(np.float32)
    longer = [np.abs(z @ itq_rotation(z, 32, 5, seed)).sum() for seed in range(3)]
    monkeypatch.setattr("cbir_faiss.codecs._itq._SHIFT", 0.0)
    plain = [np.abs(z @ itq_rotation(z, 32, 5, seed)).sum() for seed in range(3)]
    assert (np.array(longer) > 1.001 * np.array(plain)).all()


def test_principal_components_are_ordered_and_point_where_their_largest_element_is_positive():
    x = decaying(300, 20) - 0.5
    x[:, 7] = x[:, 3]  # 19 that vary
    variances, directions, rank = principal_components(x)
    assert rank == 19
    assert (np.diff(variances) <= 0).all()
    np.testing.assert_allclose(variances, ((x @ directions) ** 2).mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(directions.T @ directions, np.eye(20), atol=1e-9)
    assert (directions[np.abs(directions).argmax(axis=0), np.arange(20)] > 0).all()
    variances, _, rank = principal_components(x[:4])
    assert (rank, (variances >= 0).all()) == (4, True)
    scales = np.array([1e4, *[1e-1] * 5], np.float32)  # of the sum of squares the others are rounding
    assert principal_components(np.random.default_rng(0).standard_normal((60, 6), np.float32) * scales)[2] == 1
    assert principal_components(np.zeros((3, 5), np.float32))[2] == 0


def test_ksh_is_a_kernel_machine():
    x, labels = decaying(200), np.arange(200) % 3
    codec = registry.make("codecs", "ksh", bits=8, anchors=30).fit(x, labels)
    centred, anchors = x - codec.state["mean"], codec.state["anchors"]
    assert (anchors[:, None] == centred[None]).all(axis=2).any(axis=1).all()
    apart = ((centred[:, None].astype(np.float64) - anchors) ** 2).sum(axis=2)
    assert float(codec.state["spread"]) == pytest.approx(apart.mean(), rel=1e-4)
    kernel = np.exp(-apart / (2 * apart.mean()))
    np.testing.assert_allclose(codec.state["kernel_mean"], kernel.mean(axis=0), atol=1e-5)
    matrix = codec.state["matrix"].astype(np.float64)
    np.testing.assert_allclose(codec.project(x), (kernel - kernel.mean(axis=0)) @ matrix, atol=2e-2)


def test_ksh_gets_nearer_to_the_labels_by_climbing_and_by_more_bits():
    rng = np.random.default_rng(2)
    labels = np.arange(240) % 4
    x = (rng.standard_normal((4, 16))[labels] + rng.standard_normal((240, 16))).astype(np.float32)
    similar = np.where(labels[:, None] == labels[None], 1, -1)

    def error(bits, steps):
        codec = registry.make("codecs", "ksh", bits=bits, anchors=60, steps=steps).fit(x, labels)
        signs = np.unpackbits(codec.encode(x), axis=1) * 2.0 - 1
        return ((signs @ signs.T / bits - similar) ** 2).mean()

    assert error(8, 30) < 0.93 * error(8, 0)
    assert error(32, 30) < error(8, 30)


@pytest.mark.parametrize("form", ["int", "bool"])
def test_ksh_calls_items_similar_where_they_share_a_label(form):
    labels = np.array([0, 1, -1, 1, 2, 0])
    given = labels if form == "int" else labels[:, None] == np.arange(3)
    x, similar = _supervision(np.arange(6, dtype=np.float32)[:, None], given)
    known = labels[labels >= 0]
    assert x.ravel().tolist() == [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(similar(np.eye(5)), np.where(known[:, None] == known, 1, -1))


def test_ksh_begins_each_bit_with_the_largest_eigenvector():
    rng = np.random.default_rng(7)
    kernel, matrix = rng.standard_normal((40, 6)), rng.standard_normal((40, 40))
    matrix += matrix.T
    found = _greedy(kernel, lambda v: matrix @ v, bits=2, steps=0)
    left = 2 * matrix
    for direction in found.T:  # each of what those before it have left over
        values, vectors = np.linalg.eigh(kernel.T @ left @ kernel)
        assert abs(direction @ vectors[:, values.argmax()]) == pytest.approx(1)
        code = np.sign(kernel @ direction)
        left = left - np.outer(code, code)


@pytest.mark.parametrize("scale", [1.0, 1e-9])  # the objective's, which does not matter
def test_ksh_climbs_along_the_gradient(scale):
    rng = np.random.default_rng(8)
    kernel, matrix, direction = rng.standard_normal((40, 6)), rng.standard_normal((40, 40)), rng.standard_normal(6)
    matrix = scale * (matrix + matrix.T)

    def objective(at):
        soft = np.tanh(kernel @ at / 2)
        return soft @ matrix @ soft

    step = _climb(kernel, lambda v: matrix @ v, direction, steps=1) - direction
    slope = [objective(direction + 1e-6 * axis) - objective(direction - 1e-6 * axis) for axis in np.eye(6)]
    assert step @ slope == pytest.approx(np.linalg.norm(step) * np.linalg.norm(slope), rel=1e-4)
    assert np.linalg.norm(step) > 0


@pytest.mark.parametrize(
    ("name", "module", "options"),
    [
        ("lsh", "lsh", {"bits": 64}),
        ("lsh", "_hadamard", {"bits": 64, "projection": "hadamard"}),
        ("rotate", "_hadamard", {"rotation": "hadamard"}),
        ("ksh", "ksh", {"bits": 16, "anchors": 20}),
        ("itq", "_itq", {"bits": 16}),
    ],
)
def test_the_size_of_blocks_changes_nothing(name, module, options, monkeypatch):
    x, labels = decaying(101), np.arange(101) % 3
    expected = registry.make("codecs", name, **options).fit(x, labels)
    for rows in (1, 7, 50):
        monkeypatch.setattr(f"cbir_faiss.codecs.{module}._ROWS", rows)
        codec = registry.make("codecs", name, **options).fit(x, labels)
        np.testing.assert_allclose(codec.project(x), expected.project(x), atol=1e-3)
        assert (codec.encode(x) != expected.encode(x)).mean() < 0.01


def test_defaults_of_the_options():
    defaults: dict[str, dict[str, Any]] = {
        "itq": {"iterations": 20, "normalise": True, "center": True, "seed": 0, "train_size": 50_000},
        "rotate": {"iterations": 20, "normalise": False, "center": True, "seed": 0, "train_size": 50_000},
        "ksh": {"anchors": 300, "steps": 30, "normalise": False, "seed": 0, "train_size": 5_000},
        "lsh": {"normalise": False, "center": True, "seed": 0, "train_size": 50_000},
        "sign": {"normalise": False, "center": False},
        "sigmoid-mean": {"normalise": False, "center": False},
        "threshold": {"seed": 0, "train_size": 50_000},
    }
    for name, expected in defaults.items():
        bits: dict[str, Any] = {"bits": 16} if "bits" in registry.load("codecs", name).Options.model_fields else {}
        options = registry.make("codecs", name, **bits).options.model_dump()
        assert {key: options[key] for key in expected} == expected


def test_what_learns_from_differences_needs_two_vectors():
    codecs = ("itq", "pca-sign", "sh", "ksh", "lsh", "raw")
    needed = {name: getattr(registry.load("codecs", name), "min_train") for name in codecs}  # noqa: B009
    assert needed == {"itq": 2, "pca-sign": 2, "sh": 2, "ksh": 2, "lsh": 1, "raw": 1}
