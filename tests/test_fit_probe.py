"""The probe's parts against scikit-learn and slow obvious computations; honest figures."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from audiotag.inference.head import activate
from audiotag.training.fit.calibrate import best_f1, clip_max, fit_platt, fit_temperature, fit_thresholds
from audiotag.training.fit.features import Features
from audiotag.training.fit.figures import bootstrap, class_rows, fast_figures, reliability, summary
from audiotag.training.fit.linear import Linear, Standard, fit_logistic
from audiotag.training.fit.probe import fit_probe
from audiotag.training.fit.regression import Problem, Setting, candidate_parts, train
from audiotag.training.fit.ridge import Sums
from audiotag.training.fit.splits import Folds


def blobs(n=300, features=12, classes=4, apart=1.5, seed=0):
    """Rows around a centre for each class, strongly correlated features, and the classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    mixing = rng.standard_normal((features, features))
    rows = (apart * rng.standard_normal((classes, features))[y] + rng.standard_normal((n, features))) @ mixing
    return rows.astype(np.float32), y


def problem(rows, targets, activation="softmax", rest=False, n_folds=5, seed=0):
    """Every row is a clip with one window and a group of its own."""
    rng = np.random.default_rng(seed)
    n = len(rows)
    features = Features(rows, np.arange(n), {"embedding": rows.shape[1]}, 0, {})
    folds = Folds(rng.permutation(n) % n_folds, np.arange(n), tuple(map(str, range(n_folds))), False)
    return Problem(features, targets.astype(np.float32), folds, activation, rest)


# -- ridge regression ----------------------------------------------------------------------------------------------


def test_ridge_on_sums_is_scikit_learns_on_the_rows():
    rows, y = blobs(features=20)
    targets, fold = np.eye(4)[y], np.arange(len(rows)) % 5
    fold[:7] = -1
    columns = np.array([3, 5, 7, 11])
    found = Sums(rows, targets, fold).without(1, 2).solve(columns, 0.3)
    kept = np.isin(fold, (0, 3, 4))
    x = rows[kept][:, columns].astype(np.float64)
    standard = (x - x.mean(0)) / x.std(0)
    oracle = Ridge(alpha=0.3 * kept.sum()).fit(standard, targets[kept])
    ours = rows[:, columns] @ found.weight + found.bias
    theirs = oracle.predict((rows[:, columns] - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


# -- logistic regression -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_softmax_is_scikit_learns(c):
    rows, y = blobs()
    rows = Standard.of(rows)(rows)
    oracle = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(rows.astype(np.float64), y)
    ours = fit_logistic(rows, np.eye(4)[y], c=c, activation="softmax", tolerance=1e-9, max_iterations=2000)
    theirs = oracle.predict_proba(rows.astype(np.float64))
    np.testing.assert_allclose(activate(ours(rows), "softmax"), theirs, atol=2e-3)


def test_sigmoid_with_unknown_labels_is_scikit_learns_on_the_known_ones():
    rows, y = blobs(seed=1)
    rows = Standard.of(rows)(rows)
    targets = np.eye(4)[y]
    rng = np.random.default_rng(0)
    targets[rng.random(targets.shape) < 0.3] = np.nan
    weights = rng.uniform(0.2, 2, len(rows))
    ours = fit_logistic(
        rows, targets, c=0.5, activation="sigmoid", weights=weights, tolerance=1e-9, max_iterations=2000
    )
    for k in range(4):
        known = ~np.isnan(targets[:, k])
        oracle = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000)
        oracle.fit(rows[known].astype(np.float64), targets[known, k], sample_weight=weights[known])
        theirs = oracle.predict_proba(rows.astype(np.float64))[:, 1]
        np.testing.assert_allclose(activate(ours(rows), "sigmoid")[:, k], theirs, atol=2e-3)


@pytest.mark.parametrize("shrinkage", [1.0, 1e4])
def test_a_model_is_scikit_learns_on_decorrelated_features(shrinkage):
    """Folded onto features as they are, its scores are those of the regression on L^-1 of the standardised ones."""
    rows, y = blobs(seed=2)
    made = problem(rows, np.eye(4)[y])
    model, _ = train(made, Setting((("embedding",),), shrinkage, 3.0), np.ones(len(rows), bool), tolerance=1e-9)
    z = Standard.of(rows)(rows).astype(np.float64)
    slowly = np.linalg.solve(np.linalg.cholesky(z.T @ z / len(z) + shrinkage * np.eye(z.shape[1])), z.T).T
    oracle = LogisticRegression(C=3.0, tol=1e-10, max_iter=5000).fit(slowly, y)
    np.testing.assert_allclose(activate(model(rows), "softmax"), oracle.predict_proba(slowly), atol=2e-3)


def test_a_mean_of_two_regressions_is_one_linear_map():
    rows, y = blobs(seed=3)
    made = problem(rows, np.eye(4)[y])
    features = replace(made.features, sizes={"block4": 3, "embedding": 5, "hidden": 4})
    made, everything = replace(made, features=features), np.ones(len(rows), bool)
    setting = Setting((("hidden", "embedding"), ("embedding",)), 3.0, 1.0)
    both, parts = train(made, setting, everything, tolerance=1e-9)
    alone = [train(made, one, everything, tolerance=1e-9)[0] for one in setting.single()]
    np.testing.assert_allclose(both(rows), (alone[0](rows) + alone[1](rows)) / 2, atol=1e-6)
    assert both.columns.tolist() == [8, 9, 10, 11, 3, 4, 5, 6, 7] and len(parts) == 2
    again, _ = train(made, setting, everything, parts, tolerance=1e-9)  # from its own solution it goes nowhere
    np.testing.assert_allclose(again(rows), both(rows), atol=2e-3)


def test_what_there_is_to_choose_among():
    sizes = {"block4": 1, "logmel": 1, "embedding": 1, "hidden": 1}
    ways = candidate_parts(sizes)
    mid, last = ("block4", "logmel"), ("embedding", "hidden")
    assert {(("embedding",),), (("hidden",),), (last,), (mid,), ((*mid, *last),), (last, mid)} <= set(ways)
    assert candidate_parts({"embedding": 1}) == [(("embedding",),)]


def test_a_constant_feature_does_no_harm():
    rows, y = blobs(seed=3)
    rows[:, 3] = 7.0
    model, _ = train(problem(rows, np.eye(4)[y]), Setting((("embedding",),), 10.0, 0.3), np.ones(len(rows), bool))
    assert np.isfinite(model(rows)).all() and np.abs(model.linear.weight[3]).max() < 1e3
    assert (model(rows).argmax(1) == y).mean() > 0.9


# -- honesty -------------------------------------------------------------------------------------------------------


def test_shuffled_labels_score_at_chance():
    """More features than clips, so that anything that saw a clip would fit it: what it did not see is chance."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((240, 300)).astype(np.float32)
    y = rng.integers(0, 4, 240)
    probe = fit_probe(problem(rows, np.eye(4)[y]))
    accuracy = (probe.scores.argmax(1) == y).mean()
    assert abs(accuracy - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 240)
    told = summary(np.eye(4)[y], probe.scores, probe.judged, "single")
    assert told["calibration_error"] < 0.12  # and it says that it does not know
    fitted = rows @ probe.weight.T[:, :4] + probe.bias[:4]
    assert (fitted.argmax(1) == y).mean() > 0.8  # the final model has learnt its noise by heart


def test_a_probe_learns_what_is_there():
    rows, y = blobs(400, apart=1.2, seed=4)
    probe = fit_probe(problem(rows, np.eye(4)[y]))
    assert (probe.scores.argmax(1) == y).mean() > 0.9
    assert np.isfinite(probe.scores).all() and probe.scores.min() >= 0 and probe.scores.max() <= 1


def test_no_label_is_a_row_of_its_own():
    rows, y = blobs(400, classes=5, seed=5)
    targets = np.eye(5)[y][:, :4]  # class 4 is background
    probe = fit_probe(problem(rows, targets, rest=True))
    assert probe.weight.shape == (5, 12)
    empty = targets.sum(1) == 0
    assert (probe.scores[empty].sum(1) < 0.5).mean() > 0.8 and (probe.scores[~empty].sum(1) > 0.5).mean() > 0.9


def test_a_fold_is_scored_without_its_clips():
    """Changing a fold's labels changes no score of that fold: nothing chosen for it has seen them."""
    rows, y = blobs(200, apart=0.8, seed=6)
    first = problem(rows, np.eye(4)[y])
    targets = np.eye(4)[y]
    here = first.folds.test(2)
    targets[here] = np.eye(4)[np.random.default_rng(1).permutation(y[here])]
    second = problem(rows, targets)
    a, b = fit_probe(first), fit_probe(second)
    np.testing.assert_array_equal(a.scores[here], b.scores[here])
    np.testing.assert_array_equal(a.judged[here], b.judged[here])
    assert (a.scores[~here] != b.scores[~here]).any()


def test_what_shares_a_group_with_a_tested_clip_is_in_no_training(monkeypatch):
    """Test split and given folds cut through groups here; every training of the whole fit is looked at."""
    from audiotag.training.fit import probe as module

    rows, y = blobs(200, apart=0.8, seed=8)
    index = np.arange(200) % 5 - 1  # a fifth is the test split
    group = np.where(np.arange(200) < 60, np.arange(200) // 3, np.arange(200))
    folds = Folds(index, group, tuple("abcd"), True)
    made = Problem(problem(rows, np.eye(4)[y]).features, np.eye(4, dtype=np.float32)[y], folds, "softmax", False)
    seen, real = [], train
    monkeypatch.setattr(module, "train", lambda p, s, clips, *a, **k: seen.append(clips) or real(p, s, clips, *a, **k))
    fit_probe(made)
    test = set(group[index < 0].tolist())
    assert len(seen) >= 4 + 1 + 4  # pairs of folds, then without each fold, then all
    assert all(not test & set(group[clips].tolist()) for clips in seen)
    for fold in range(4):
        here = set(group[index == fold].tolist())
        assert sum(not here & set(group[clips].tolist()) for clips in seen) >= 3  # its pairs, and its own model


def test_windows_of_a_clip_count_by_their_highest():
    rows, y = blobs(120, seed=7)
    n = len(rows)
    noise = np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)
    windows = np.stack([rows, noise], 1).reshape(2 * n, -1)
    made = problem(rows, np.eye(4)[y])
    features = Features(windows, np.repeat(np.arange(n), 2), made.features.sizes, 0, {})
    probe = fit_probe(Problem(features, made.targets, made.folds, "softmax", False))
    assert probe.setting.pooling in ("mean", "windows")
    assert (probe.scores.argmax(1) == y).mean() > 0.8


# -- calibration and thresholds ------------------------------------------------------------------------------------


def test_temperature_is_found_again():
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((4000, 5))
    p = activate(logits, "softmax")
    y = np.array([rng.choice(5, p=row) for row in p])
    found = fit_temperature(logits * 3, np.arange(4000), y)
    assert found.record()["temperature"] == pytest.approx(3, rel=0.1)


def test_platt_is_found_again_and_pooled_where_clips_are_few():
    rng = np.random.default_rng(0)
    z = 2 * rng.standard_normal((4000, 3))
    targets = (rng.random(z.shape) < activate(z, "sigmoid")).astype(float)
    targets[5:, 2] = 0
    targets[:5, 2] = 1  # five positives: too few for numbers of its own
    found = fit_platt((z - [1, 2, 0]) / [2, 0.5, 1], targets)
    np.testing.assert_allclose(found.scale[:2], [2, 0.5], rtol=0.12)
    np.testing.assert_allclose(found.shift[:2], [1, 2], atol=0.2)
    pooled = fit_platt(z[:, 2:], targets[:, 2:])
    assert found.record()["method"] == "platt" and found.scale[2] not in (pooled.scale[0], found.scale[0])


def test_best_f1_is_the_best_by_trying_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = np.round(0.05 + 0.9 * rng.random(40), 1)
        target = rng.random(40) < 0.3
        target[0] = True

        def f1(t, scores=scores, target=target):
            said = scores >= t
            return 2 * (said & target).sum() / (said.sum() + target.sum())

        assert f1(best_f1(scores, target.astype(float))) == pytest.approx(max(f1(t) for t in np.linspace(0, 1, 201)))


def test_thresholds_and_support():
    scores = np.array([[0.9, 0.2], [0.8, 0.1], [0.2, 0.3], [0.1, 0.2]] * 6)
    targets = np.array([[1, 0], [1, 0], [0, np.nan], [0, 1]] * 6, float)
    thresholds, support = fit_thresholds(scores, targets)
    assert support.tolist() == [12, 6] and 0.2 < thresholds[0] < 0.8
    assert np.isnan(fit_thresholds(scores, np.zeros_like(targets))[0]).all()


def test_clip_max():
    got = clip_max(np.array([[1.0, 5], [2, 4], [3, 3]]), np.array([0, 0, 2]), 3)
    np.testing.assert_array_equal(got, [[2, 5], [np.nan, np.nan], [3, 3]])


# -- figures -------------------------------------------------------------------------------------------------------


def test_figures_are_scikit_learns():
    from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score

    rng = np.random.default_rng(0)
    targets = (rng.random((300, 4)) < 0.3).astype(float)
    scores = np.clip(0.4 * targets + 0.6 * rng.random((300, 4)), 0.001, 0.999)
    told = summary(targets, scores, np.full(4, 0.5), "multi")
    assert told["mean_average_precision"] == pytest.approx(average_precision_score(targets, scores))
    assert told["mean_auc"] == pytest.approx(roc_auc_score(targets, scores))
    assert told["macro_f1"] == pytest.approx(f1_score(targets, scores >= 0.5, average="macro"))
    assert told["log_loss"] == pytest.approx(log_loss(targets.ravel(), scores.ravel()))
    assert told["brier"] == pytest.approx(((scores - targets) ** 2).mean())
    assert told["exact"] == pytest.approx(((scores >= 0.5) == targets).all(1).mean())
    quick = fast_figures(targets, scores, np.full(4, 0.5), "multi")(np.arange(300))
    assert quick[1:] == pytest.approx((told["mean_average_precision"], told["macro_f1"]))
    rows = class_rows(targets, scores, np.full(4, 0.5))
    assert rows[2]["false_alarms"] == int(((scores[:, 2] >= 0.5) & (targets[:, 2] == 0)).sum())


def test_unknown_labels_are_left_out_of_figures():
    targets = np.array([[1.0, 0], [0, 1], [np.nan, 0], [0, 0]])
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.99, 0.3], [0.1, 0.2]])
    told = summary(targets, scores, np.full(2, 0.5), "multi")
    assert told["mean_average_precision"] == 1 and told["macro_f1"] == 1 and told["exact"] == 1


def test_intervals_cover_the_truth_and_know_groups():
    """Groups of equal clips: an interval over clips would be far too narrow."""
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(40):
        right = np.repeat(rng.random(40) < 0.7, 10)
        low, high = bootstrap(
            lambda c, right=right: [right[c].mean()], np.repeat(np.arange(40), 10), seed=seed, resamples=300
        )[0]
        inside += low <= 0.7 <= high
        assert high - low > 0.15
    assert inside >= 34


def test_reliability():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    rows = reliability(scores, (rng.random(20_000) < scores).astype(float))
    assert len(rows) == 10 and all(abs(r["score"] - r["right"]) < 0.04 for r in rows)
    assert sum(r["share"] for r in rows) == pytest.approx(1)


def test_linear_and_standard():
    rows = np.array([[1.0, 2], [3, 6]], np.float32)
    standard = Standard.of(rows)
    np.testing.assert_allclose(standard(rows), [[-1, -1], [1, 1]], rtol=2e-3)
    line = Linear(np.array([[1.0], [2]]), np.array([0.5]))
    np.testing.assert_allclose(line.folded(standard)(rows.astype(float)), line(standard(rows)), rtol=1e-5)
