"""NormSim: against brute force, its laws, and targets that must be refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring import embeddings_of, made, pool_of, stored, valid_of

from dbp.data.scores import Scores
from dbp.engine.work import Work
from dbp.errors import ConfigError, DbpError, WorldError
from dbp.formats import target_vectors
from dbp.formats.target_vectors import Targets
from dbp.scoring.norm_sim import NormSim
from dbp.scoring.norm_sim_dynamic import NormSimDynamic
from dbp.scoring.second_moment import Moment, TargetMoment, add_outer, moment_of, quadratic

N, WIDTH = 120, 12


def vectors(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, WIDTH)) * np.linspace(2, 0.3, WIDTH)).astype(np.float32)


def inputs(folder: Path, parts: int = 1, order: np.ndarray | None = None, without: Any = ()) -> dict[str, Any]:
    order = np.arange(N) if order is None else order
    uids = [f"u{i}" for i in order]
    return {
        "pool": pool_of(folder / "pool", uids),
        "image": embeddings_of(folder / "image", vectors(N, 0)[order], parts, without),
    }


def written(folder: Path, targets: np.ndarray) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "targets.npy", targets)
    return str(folder / "targets.npy")


def scored(stage: NormSim, folder: Path, **given: Any) -> tuple[Scores, dict[str, Any]]:
    """With the second moment that the recipe would make for it."""
    if stage.norm != "max":
        home = folder.with_name(f"{folder.name}-moment")
        home.mkdir(parents=True)
        TargetMoment(stage.targets).run(Work(home, home / "shared", "key"))
        given["moment"] = Moment.load(home)
    return made(stage, folder, **given)


def unit(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) / np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)


@pytest.mark.parametrize("norm", [2, "max"])
def test_the_score_is_that_of_brute_force(norm: Any, tmp_path: Path) -> None:
    targets = 3 * vectors(50, 1)  # of any length: directions count
    cosine = stored(vectors(N, 0)) @ unit(targets).T
    expected = cosine.max(axis=1) if norm == "max" else np.sqrt((cosine**2).mean(axis=1))
    stage = NormSim(norm, "glyphs train", written(tmp_path, targets))
    found, counts = scored(stage, tmp_path / "a", **inputs(tmp_path, without=[3, 77]))
    there = np.setdiff1d(np.arange(N), [3, 77])
    np.testing.assert_allclose(found.values[there], expected[there], atol=2e-4 if norm == 2 else 1e-6)
    assert np.isnan(found.values[[3, 77]]).all()
    assert counts == {"rows": N - 2, "without score": 2, "targets": 50}
    assert "glyphs train" in found.label


@pytest.mark.parametrize("norm", [2, "max"])
def test_no_order_of_rows_or_targets_and_no_part_thread_or_chunk_changes_a_bit(
    norm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, rng = vectors(50, 1), np.random.default_rng(4)
    stage = NormSim(norm, "train", written(tmp_path / "one", targets))
    whole, _ = scored(stage, tmp_path / "a", **inputs(tmp_path / "one"))
    monkeypatch.setattr(target_vectors, "CHUNK", 7)
    monkeypatch.setattr("dbp.scoring.norm_sim.BLOCK", 9)
    order = rng.permutation(N)
    other = replace(stage, targets=written(tmp_path / "two", rng.permutation(targets)), threads=3)
    again, _ = scored(other, tmp_path / "b", **inputs(tmp_path / "two", 5, order))
    np.testing.assert_array_equal(again.values, whole.values[order])


def test_the_largest_cosine_of_a_row_that_is_a_target_is_one(tmp_path: Path) -> None:
    stage = NormSim("max", "train", written(tmp_path, vectors(N, 0)[:5]))
    found, _ = scored(stage, tmp_path / "a", **inputs(tmp_path))
    np.testing.assert_allclose(found.values[:5], 1, atol=1e-6)
    assert found.values[5:].max() < 1


def test_more_targets_never_lower_the_largest_cosine(tmp_path: Path) -> None:
    few = NormSim("max", "train", written(tmp_path / "few", vectors(50, 1)[:10]))
    many = replace(few, targets=written(tmp_path / "many", vectors(50, 1)))
    given = inputs(tmp_path)
    low, high = (scored(s, tmp_path / n, **given)[0].values for s, n in ((few, "a"), (many, "b")))
    assert (high >= low).all()
    assert (high > low).any()


def test_targets_that_point_everywhere_alike_give_every_row_one_score(tmp_path: Path) -> None:
    stage = NormSim(2, "train", written(tmp_path, np.eye(WIDTH)))
    found, _ = scored(stage, tmp_path / "a", **inputs(tmp_path))
    np.testing.assert_allclose(found.values, np.sqrt(1 / WIDTH), rtol=1e-6)


def test_sums_of_outer_products_are_exact_in_any_order() -> None:
    half, rng = stored(vectors(N, 0)).astype(np.float16), np.random.default_rng(0)
    sums = []
    for blocks in (np.split(half, 1), np.split(half, 8), np.split(rng.permutation(half), 3)):
        sums.append(np.zeros((WIDTH, WIDTH)))
        for block in blocks:
            add_outer(sums[-1], block)
    np.testing.assert_array_equal(sums[0], sums[1])
    np.testing.assert_array_equal(sums[0], sums[2])
    add_outer(sums[0], half[:40], -1)
    add_outer(alone := np.zeros((WIDTH, WIDTH)), half[40:])
    np.testing.assert_array_equal(sums[0], alone)
    exact = half.astype(np.float64)
    moment = moment_of(sums[1], N)
    np.testing.assert_allclose(moment, exact.T @ exact / N, atol=2e-4)
    expected = np.einsum("ij,jk,ik->i", exact, moment, exact) / (exact**2).sum(axis=1)
    np.testing.assert_allclose(quadratic(half, moment), expected, rtol=1e-12)


def test_an_image_orthogonal_to_all_targets_has_the_score_zero_and_not_none(tmp_path: Path) -> None:
    """Rounded to 2^-12, the second moment of one target need not be a square: here xᵀ Σ x is below 0."""
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(3, WIDTH))
    images = rng.normal(size=(N, WIDTH))
    images -= images @ np.linalg.pinv(targets) @ targets
    stage = NormSim(2, "train", written(tmp_path, targets))
    given = {"pool": inputs(tmp_path)["pool"], "image": embeddings_of(tmp_path / "flat", images.astype(np.float32))}
    found, counts = scored(stage, tmp_path / "a", **given)
    assert counts["without score"] == 0
    assert found.values.min() == 0
    assert found.values.max() < 0.01


# what is refused


def refused(stage: NormSim, folder: Path) -> str:
    with pytest.raises(DbpError) as error:
        stage.parts(**inputs(folder))
    return str(error.value)


def test_targets_of_another_width_are_refused_with_both_widths(tmp_path: Path) -> None:
    said = refused(NormSim("max", "train", written(tmp_path, np.ones((4, 7)))), tmp_path)
    assert "score.targets" in said
    assert "[7]" in said
    assert "12" in said


def test_targets_must_be_named_and_say_what_they_are(tmp_path: Path) -> None:
    assert "score.targets" in refused(NormSim("max", "train"), tmp_path / "a")
    assert "score.target_name" in refused(NormSim("max", " ", written(tmp_path, np.ones((4, 12)))), tmp_path / "b")
    assert "there is no such file" in refused(NormSim("max", "train", str(tmp_path / "none.npy")), tmp_path / "c")


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_target_without_a_direction_is_named(bad: float, tmp_path: Path) -> None:
    targets = vectors(9, 1)
    targets[6] = bad
    with pytest.raises(WorldError, match="vector 6"):
        list(Targets(Path(written(tmp_path, targets)), "score.targets").chunks())


def test_an_npz_of_several_arrays_and_a_pickle_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.ones((2, 3)), b=np.ones((2, 3)))
    with pytest.raises(WorldError, match="'a', 'b'"):
        _ = Targets(tmp_path / "two.npz", "score.targets").arrays
    np.savez(tmp_path / "one.npz", a=np.ones((2, 3)))
    assert Targets(tmp_path / "one.npz", "score.targets").num_rows == 2
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(WorldError, match=r"score\.targets"):
        _ = Targets(tmp_path / "objects.npy", "score.targets").arrays


def test_an_artifact_of_another_encoder_is_refused_and_one_of_the_same_is_not(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    embeddings_of(tmp_path / "targets", vectors(20, 1), 2)
    stage = NormSim("max", "train", str(tmp_path / "targets"))
    for home, encoder in ((tmp_path / "image", "L/14"), (tmp_path / "targets", "L/14")):
        about = {"key": home.name, "parameters": {"encoder": encoder}}
        (home / "manifest.json").write_text(json.dumps(about))
    found, counts = made(stage, tmp_path / "a", **given)
    cosine = stored(vectors(N, 0)) @ stored(vectors(20, 1)).T
    np.testing.assert_allclose(found.values, cosine.max(axis=1), atol=1e-6)
    assert counts["targets"] == 20
    about = {"key": "targets", "parameters": {"encoder": "B/32"}}
    (tmp_path / "targets" / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError) as error:
        stage.parts(**given)
    assert "B/32" in str(error.value)
    assert "L/14" in str(error.value)


def kept(folder: Path, name: str, features: np.ndarray) -> None:
    """Vectors as an evaluation keeps them: two chunks of one set."""
    for number, chunk in enumerate(np.array_split(features.astype(np.float32), 2)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        np.savez(folder / name / f"{number}.npz", features=chunk, digests=np.zeros((len(chunk), 32), np.uint8))


def test_targets_that_hold_a_test_set_are_refused_and_a_few_near_duplicates_are_not(tmp_path: Path) -> None:
    train, test = unit(vectors(80, 1)), unit(vectors(40, 2))
    kept(tmp_path / "kept", "cifar10", test)
    kept(tmp_path / "kept", "other", unit(vectors(30, 3)))
    folder = (str(tmp_path / "kept"),)
    mixed = written(tmp_path / "mixed", np.concatenate([train, test + 1e-6]))
    with pytest.raises(ConfigError) as error:
        NormSim("max", "train", mixed, folder).accept({})
    assert "cifar10" in str(error.value)
    assert "100%" in str(error.value)
    few = written(tmp_path / "few", np.concatenate([train, test[:3]]))
    assert NormSim("max", "train", few, folder).lacks({}) == []
    (error_of_none,) = NormSim("max", "train", few, (str(tmp_path / "few"),)).lacks({})
    assert "no .npz" in str(error_of_none)


# NormSim-D


def dynamic(folder: Path, *layout: Any, held_out: Any = (), **more: Any) -> dict[str, Any]:
    found = inputs(folder, *layout, **more)
    return found | {"valid": valid_of(found["pool"], held_out)}


DYNAMIC = NormSimDynamic(keep_fraction=0.25, num_steps=6)


def eliminated(unit_vectors: np.ndarray, keep: int, steps: int) -> list[list[int]]:
    """By brute force: the rows that each step drops, then those that are left, worst first."""
    left, each = list(range(len(unit_vectors))), -(-(len(unit_vectors) - keep) // steps)
    groups = []
    while len(left) > keep:
        own = unit_vectors[left]
        form = np.einsum("ij,jk,ik->i", own, own.T @ own / len(own), own)
        order = np.argsort(form)[: min(each, len(left) - keep)]
        groups.append([left[i] for i in order])
        left = [row for i, row in enumerate(left) if i not in set(order.tolist())]
    own = unit_vectors[left]
    return [*groups, [left[i] for i in np.argsort(np.einsum("ij,jk,ik->i", own, own.T @ own / len(own), own))]]


def test_the_order_by_score_is_that_of_elimination(tmp_path: Path) -> None:
    groups = eliminated(stored(vectors(N, 0)), 30, 6)
    found, counts = made(DYNAMIC, tmp_path / "a", **dynamic(tmp_path))
    assert counts == {"rows": N, "without score": 0, "left": 30, "steps": 6}
    order = np.argsort(found.values).tolist()
    at = 0
    for group in groups:  # within a group, rounding may exchange neighbours
        assert set(order[at : at + len(group)]) == set(group)
        at += len(group)
    assert sorted(np.flatnonzero(found.values > 0).tolist()) == sorted(groups[-1])
    assert found.values.max() <= 1


def test_steps_that_do_not_divide_end_at_the_target(tmp_path: Path) -> None:
    found, counts = made(replace(DYNAMIC, num_steps=7), tmp_path / "a", **dynamic(tmp_path, without=[0, 1]))
    assert counts["left"] == 29
    assert int((found.values > 0).sum()) == 29
    assert np.isnan(found.values[:2]).all()


def test_one_step_drops_the_lowest_of_the_whole_pool(tmp_path: Path) -> None:
    found, counts = made(replace(DYNAMIC, num_steps=1), tmp_path / "a", **dynamic(tmp_path))
    whole = stored(vectors(N, 0))
    form = np.einsum("ij,jk,ik->i", whole, whole.T @ whole / N, whole)
    assert counts["steps"] == 1
    assert set(np.flatnonzero(found.values > 0).tolist()) == set(np.argsort(form)[-30:].tolist())


def test_elimination_is_the_same_bits_for_any_order_and_parts(tmp_path: Path) -> None:
    whole, _ = made(DYNAMIC, tmp_path / "a", **dynamic(tmp_path / "one"))
    order = np.random.default_rng(1).permutation(N)
    again, _ = made(DYNAMIC, tmp_path / "b", **dynamic(tmp_path / "two", 5, order))
    np.testing.assert_array_equal(again.values, whole.values[order])


def test_a_killed_elimination_goes_on_from_its_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dynamic(tmp_path)
    whole, _ = made(DYNAMIC, tmp_path / "a", **given)
    lowest, calls = NormSimDynamic.lowest, []

    def dies(self: NormSimDynamic, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return lowest(self, *args)

    monkeypatch.setattr(NormSimDynamic, "lowest", dies)
    work = Work(tmp_path / "b", tmp_path / "b-shared", "key")
    work.folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        DYNAMIC.run(work, **given)
    DYNAMIC.run(work, **given)
    assert len(calls) == 4 + 4, "three steps were done"
    assert work.kept == []
    np.testing.assert_array_equal(Scores.load(work.folder).values, whole.values)


def test_elimination_may_start_with_the_best_by_another_score(tmp_path: Path) -> None:
    given = dynamic(tmp_path)
    other = Scores(np.arange(N, dtype=np.float32), higher_is_better=False)
    found, counts = made(replace(DYNAMIC, among=0.5), tmp_path / "a", **given, scores=other)
    assert counts["rows"] == 60
    assert np.isnan(found.values[60:]).all()
    assert int((found.values[:60] > 0).sum()) == 15
    assert replace(DYNAMIC, among=0.5).unneeded() == set()
    assert DYNAMIC.unneeded() == {"scores"}


def test_a_pool_without_vectors_has_no_score(tmp_path: Path) -> None:
    found, counts = made(DYNAMIC, tmp_path / "a", **dynamic(tmp_path, without=np.arange(N)))
    assert np.isnan(found.values).all()
    assert counts["rows"] == 0


def test_rows_that_are_not_valid_shape_no_moment_and_have_no_score(tmp_path: Path) -> None:
    out = [3, 50, 51, 119]
    held_out, counts = made(DYNAMIC, tmp_path / "a", **dynamic(tmp_path / "one", held_out=out))
    absent, _ = made(DYNAMIC, tmp_path / "b", **dynamic(tmp_path / "two", without=out))
    np.testing.assert_array_equal(held_out.values, absent.values)
    assert np.flatnonzero(np.isnan(held_out.values)).tolist() == out
    assert counts["rows"] == N - 4


def test_rows_above_0_are_those_that_are_left_where_images_are_all_one(tmp_path: Path) -> None:
    """Of equal images sqrt(xᵀ Σ x) is 1 but for rounding, which may lie above."""
    for seed in range(6):
        given = dynamic(tmp_path / str(seed))
        one = np.random.default_rng(seed).normal(size=(1, WIDTH)).astype(np.float32)
        given["image"] = embeddings_of(tmp_path / f"one-{seed}", np.repeat(one, N, axis=0))
        found, counts = made(DYNAMIC, tmp_path / f"a-{seed}", **given)
        assert int((found.values > 0).sum()) == counts["left"] == 30
        assert found.values.max() <= 1
