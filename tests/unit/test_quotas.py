"""Quotas: the exact solution of the quadratic programme, and its rounding to whole rows."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from qpsolvers import solve_qp

from dbp.errors import BudgetError
from dbp.selection.quotas import allocate, project

NUM_CASES = 1000
LARGEST_DENSE = 40  # clusters that quadprog, whose matrices are dense, is asked for


@dataclass
class Case:
    """One random programme."""

    targets: np.ndarray
    budget: int
    lower: np.ndarray
    upper: np.ndarray

    @property
    def scale(self) -> float:
        return max(1.0, self.budget / len(self.targets))


def random_case(seed: int, k: int | None = None) -> Case:
    """Sizes from empty to huge, a budget from the floors to everything, any temperature."""
    rng = np.random.default_rng(seed)
    k = k or int(np.exp(rng.uniform(0, np.log(5001))))
    sizes = np.floor(rng.lognormal(rng.uniform(0, 6), rng.uniform(0, 3), k)).astype(np.int64)
    sizes[rng.random(k) < rng.choice([0, 0.1, 0.5])] = 0
    lower = np.minimum(rng.choice([0, 1, 20]), sizes)
    tightness = rng.choice([0, rng.random() ** 4, rng.random(), 1 - rng.random() ** 4, 1])
    budget = int(lower.sum() + np.floor(tightness * (sizes.sum() - lower.sum())))
    complexities = rng.choice([1, 4]) * rng.random(k)
    if rng.random() < 0.2:
        complexities = np.round(complexities, 1)  # ties
    with np.errstate(over="ignore"):
        weights = np.exp((complexities - complexities.max()) / 10 ** rng.uniform(-4, 2))
    return Case(budget * weights / weights.sum(), budget, lower, sizes)


def solved(case: Case, solver: str, **settings: float) -> np.ndarray:
    """The same programme by a general solver, over the clusters that have a choice, to scale."""
    from scipy import sparse

    exact = case.lower.astype(float)
    if case.budget == case.upper.sum():  # one point is feasible; solvers call that none
        return case.upper.astype(float)
    free = case.lower < case.upper
    if case.budget > case.lower.sum():
        k = int(free.sum())
        dense = solver == "quadprog"
        found = solve_qp(
            np.eye(k) if dense else sparse.eye_array(k, format="csc"),
            -case.targets[free] / case.scale,
            A=np.ones((1, k)) if dense else sparse.csc_array(np.ones((1, k))),
            b=np.array([case.budget - exact[~free].sum()]) / case.scale,
            lb=case.lower[free] / case.scale,
            ub=case.upper[free] / case.scale,
            solver=solver,
            **settings,
        )
        assert found is not None
        exact[free] = found * case.scale
    return exact


def check_optimal(case: Case, quotas: np.ndarray, tolerance: float = 1e-9) -> None:
    """The conditions of Karush, Kuhn and Tucker: they are enough, since the programme is convex.

    One multiplier must lie above x - t wherever x could fall, and below it wherever x could rise.
    """
    assert (quotas >= case.lower).all()
    assert (quotas <= case.upper).all()
    assert abs(quotas.sum() - case.budget) <= 1e-15 * max(1.0, case.budget)
    pull = quotas - case.targets
    least = pull[quotas > case.lower].max(initial=-np.inf)
    most = pull[quotas < case.upper].min(initial=np.inf)
    assert least <= most + tolerance * max(1.0, case.budget)


def test_a_thousand_random_programmes_are_solved_exactly_and_rounded_by_less_than_a_row() -> None:
    sizes = []
    for seed in range(NUM_CASES):
        case = random_case(seed)
        sizes.append(len(case.targets))
        exact = project(case.targets, case.budget, case.lower, case.upper)
        check_optimal(case, exact)
        whole = allocate(case.targets, case.budget, case.lower, case.upper)
        assert whole.dtype == np.int64
        assert whole.sum() == case.budget
        assert (whole >= case.lower).all()
        assert (whole <= case.upper).all()
        assert (np.abs(whole - exact) < 1 + 1e-6).all()
    assert min(sizes) == 1
    assert max(sizes) > 4000


def test_the_solution_agrees_with_a_general_solver() -> None:
    compared = 0
    for seed in range(NUM_CASES):
        case = random_case(seed)
        if len(case.targets) > LARGEST_DENSE:
            continue
        quotas = project(case.targets, case.budget, case.lower, case.upper)
        np.testing.assert_allclose(
            quotas, solved(case, "quadprog"), rtol=0, atol=1e-6 * case.scale, err_msg=f"seed {seed}"
        )
        compared += 1
    assert compared > 300


@pytest.mark.parametrize(("seed", "k"), [(1, 500), (2, 2000), (3, 5000)])
def test_the_solution_agrees_with_a_sparse_solver_where_clusters_are_many(seed: int, k: int) -> None:
    pytest.importorskip("clarabel", reason="the sparse solver is an extra")
    case = random_case(seed, k)
    quotas = project(case.targets, case.budget, case.lower, case.upper)
    tight = {"tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-13}
    np.testing.assert_allclose(quotas, solved(case, "clarabel", **tight), rtol=0, atol=1e-6 * case.scale)


@pytest.mark.parametrize("seed", range(60))
def test_small_whole_quotas_are_the_best_that_any_search_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 5))
    upper = rng.integers(0, 7, k)
    lower = np.minimum(rng.integers(0, 3, k), upper)
    budget = int(rng.integers(lower.sum(), upper.sum() + 1))
    targets = rng.choice([0.25, 1.0]) * rng.integers(0, 20, k) + rng.choice([0, 1]) * rng.random(k)
    choices = [
        x
        for x in itertools.product(*(range(a, b + 1) for a, b in zip(lower, upper, strict=True)))
        if sum(x) == budget
    ]
    best = min(((np.array(x) - targets) ** 2).sum() for x in choices)
    found = allocate(targets, budget, lower, upper)
    assert tuple(found) in choices
    assert ((found - targets) ** 2).sum() == pytest.approx(best, rel=1e-12, abs=1e-12)


def test_quotas_worked_by_hand() -> None:
    # Wished for: 2 each. The first has 1 row, so the others share 5: 2.5 each; the tie goes to the
    # lower cluster number.
    targets, lower, upper = np.full(3, 2.0), np.array([1, 1, 1]), np.array([1, 5, 6])
    assert project(targets, 6, lower, upper).tolist() == [1, 2.5, 2.5]
    assert allocate(targets, 6, lower, upper).tolist() == [1, 3, 2]


def test_targets_that_meet_the_budget_within_the_bounds_stay_as_they_are() -> None:
    targets = np.array([3.0, 0.5, 1.5])
    quotas = project(targets, 5, np.zeros(3, np.int64), np.array([4, 4, 4]))
    assert quotas.tolist() == targets.tolist()


def test_equal_targets_share_equally_and_spare_rows_go_to_the_lowest_clusters() -> None:
    whole = allocate(np.full(10_000, 0.7), 7_003, np.zeros(10_000, int), np.full(10_000, 5))
    assert whole[:7_003].tolist() == [1] * 7_003
    assert whole.sum() == 7_003


def test_a_larger_target_never_gets_fewer_rows_where_the_bounds_are_equal() -> None:
    targets = np.sort(np.random.default_rng(0).gamma(0.2, 50, 300))
    whole = allocate(targets, 4_000, np.ones(300, int), np.full(300, 100))
    assert (np.diff(whole) >= 0).all()


@pytest.mark.parametrize("temperature", [1e-4, 0.1, 100])
def test_a_billion_rows_in_fifty_thousand_clusters_sum_exactly(temperature: float) -> None:
    rng = np.random.default_rng(5)
    k, budget = 50_000, 1_000_000_000
    upper = np.floor(rng.lognormal(10, 1.5, k)).astype(np.int64)
    assert upper.sum() > budget
    complexities = np.round(rng.random(k), 3)
    weights = np.exp((complexities - 1) / temperature)
    case = Case(budget * weights / weights.sum(), budget, np.minimum(1, upper), upper)
    exact = project(case.targets, budget, case.lower, upper)
    check_optimal(case, exact)
    whole = allocate(case.targets, budget, case.lower, upper)
    assert whole.sum() == budget
    assert (whole >= case.lower).all()
    assert (whole <= upper).all()
    assert (np.abs(whole - exact) < 1 + 1e-4).all()


def test_a_few_huge_clusters_are_still_rounded_by_less_than_a_row() -> None:
    targets = np.array([5e8 + 0.4, 5e8 + 0.4, 1e9 + 0.2])
    whole = allocate(targets, 2_000_000_001, np.zeros(3, int), np.full(3, 2_000_000_000))
    assert whole.tolist() == [500_000_001, 500_000_000, 1_000_000_000]


def test_no_cluster_and_no_row_is_no_quota() -> None:
    none = np.zeros(0, np.int64)
    assert allocate(np.zeros(0), 0, none, none).tolist() == []


def test_a_budget_below_the_floors_gives_both_sums() -> None:
    with pytest.raises(BudgetError) as refusal:
        allocate(np.ones(3), 2, np.ones(3, int), np.array([5, 6, 7]))
    said = str(refusal.value)
    assert said.startswith("cannot keep only 2 rows: the floors of 3 clusters sum to 3")
    assert "(their sizes to 18)" in said
    assert "select.min_per_cluster" in said


def test_a_budget_above_the_sizes_gives_both_sums() -> None:
    with pytest.raises(BudgetError) as refusal:
        project(np.ones(3), 1_900, np.ones(3, int), np.array([500, 600, 700]))
    said = str(refusal.value)
    assert said.startswith("cannot keep 1,900 rows: the clusters hold 1,800")
    assert "(their floors sum to 3)" in said


def test_one_row_too_many_is_refused_among_billions_instead_of_searched_for_ever() -> None:
    with pytest.raises(BudgetError, match="the clusters hold 4,000,000,000"):
        allocate(np.full(2, 2e9), 4_000_000_001, np.zeros(2, int), np.full(2, 2_000_000_000))
    with pytest.raises(BudgetError, match="cannot keep only 3,999,999,999 rows"):
        allocate(np.full(2, 2e9), 3_999_999_999, np.full(2, 2 * 10**9), np.full(2, 3 * 10**9))


def test_crossed_bounds_name_the_cluster() -> None:
    with pytest.raises(BudgetError, match="cluster 1 must keep at least 4 and at most 2 rows"):
        project(np.ones(3), 5, np.array([0, 4, 0]), np.array([5, 2, 5]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_targets_that_are_not_finite_are_refused_by_number(bad: float) -> None:
    with pytest.raises(ValueError, match="targets must be finite; cluster 2 is not"):
        project(np.array([1.0, 2.0, bad]), 3, np.zeros(3, int), np.full(3, 9))


def test_a_budget_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="budget must be finite"):
        project(np.ones(3), float("nan"), np.zeros(3, int), np.full(3, 9))
