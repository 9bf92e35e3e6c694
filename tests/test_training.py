"""Training without Lightning: losses, schedules, and the fast form of the blocks."""

import json
import math

import numpy as np
import pytest
import torch

from audiotag.config import NetworkConfig
from audiotag.errors import InvalidInputError
from audiotag.networks.build import build_network
from audiotag.training.feature_maps import channel_error, map_variances, student_maps, teacher_maps
from audiotag.training.inherit import exact_blocks, inherit
from audiotag.training.objectives import (
    check_teacher,
    ensemble_scores,
    gates_objective,
    logit_loss,
    score_loss,
    set_trainable,
    whole_objective,
)
from audiotag.training.pool import MapPool
from audiotag.training.recipes import Phase, read_recipe, recipe, write_recipe
from audiotag.training.schedule import rate_factor, temperature_at

DYMN, MN = NetworkConfig("dymn", 0.1), NetworkConfig("mn", 0.1)


def random_network(config, seed=0):
    """Random weights, attentions that are not all alike, and batch norms that have seen such input."""
    torch.manual_seed(seed)
    network = build_network(config).train()
    for name, value in network.state_dict().items():
        if "residuals" in name or "coef_net" in name:
            value.normal_(0, 0.5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, 1, 128, 64))
    return network.eval()


@pytest.fixture(scope="module")
def logmel():
    return torch.randn(2, 1, 128, 96, generator=torch.Generator().manual_seed(0))


# Losses and schedules, against hand computation


def test_score_loss_by_hand():
    logits = torch.tensor([[0.0, 2.0]])
    teacher, labels = torch.tensor([[0.5, 0.1]]), torch.tensor([[1.0, 0.0]])

    def bce(z, p):
        q = 1 / (1 + math.exp(-z))
        return -(p * math.log(q) + (1 - p) * math.log(1 - q))

    soft, hard = (bce(0, 0.5) + bce(2, 0.1)) / 2, (bce(0, 1) + bce(2, 0)) / 2
    assert score_loss(logits, teacher).item() == pytest.approx(soft, rel=1e-5)
    assert score_loss(logits, teacher, labels, label_share=0.1).item() == pytest.approx(
        0.9 * soft + 0.1 * hard, rel=1e-5
    )
    with pytest.raises(InvalidInputError, match="label_share"):
        score_loss(logits, teacher, label_share=0.1)


def test_logit_loss_is_nothing_for_the_teacher_itself():
    teacher = torch.tensor([[-3.0, 0.5, 4.0]])
    assert logit_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    p, q = 1 / (1 + math.exp(-1)), 0.5
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert logit_loss(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(kl, rel=1e-5)


def test_channel_error_is_relative_and_bounded_for_dead_channels():
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(4, 2, 5, 7, generator=rng) * torch.tensor([1.0, 1e-6])[:, None, None]
    live = target[:, :1] - target[:, :1].mean()
    one = channel_error(live * 0, live, live.var(unbiased=False)[None], floor=0.0)
    assert one.item() == pytest.approx(1, rel=0.01)  # predicting the mean is an error of one variance
    variance = target.var((0, 2, 3))
    assert channel_error(target + 0.1, target, variance, floor=0.1).item() < 0.2  # not 1e10, as the dead channel's says


def test_rate_and_temperature():
    paper = {"warmup": 8, "rampdown_start": 80, "rampdown": 95, "last": 0.01}
    assert rate_factor(0, **paper) == pytest.approx(math.exp(-5))
    assert rate_factor(4, **paper) == pytest.approx(math.exp(-1.25))
    assert [rate_factor(epoch, **paper) for epoch in (8, 79, 80)] == [1, 1, 1]
    assert rate_factor(80 + 47.5, **paper) == pytest.approx(0.505)
    assert rate_factor(500, **paper) == pytest.approx(0.01)
    assert rate_factor(9, warmup=1, rampdown_start=1, rampdown=0, last=0.01) == 1
    assert [temperature_at(step, start=30, end=1, steps=10) for step in (0, 5, 10, 99)] == [30, 15.5, 1, 1]


def test_recipes():
    paper = recipe("paper")
    assert paper.label_share == 0.1 and paper.mixup_alpha == 0.3 and paper.phases[0].learning_rate == 8e-4
    ours = recipe("features")
    phase, within = ours.at(ours.phases[0].steps + 3)
    assert (phase.objective, phase.first_block, within) == ("whole", 10, 3)
    assert abs(ours.scaled(0.5).steps - ours.steps / 2) <= len(ours.phases)
    with pytest.raises(InvalidInputError, match="features, paper"):
        recipe("papr")
    with pytest.raises(InvalidInputError, match="objective"):
        Phase("block", 1, 1.0, 1, 1e-3)
    with pytest.raises(InvalidInputError, match="fresh_clips"):
        Phase("whole", 1, 1.0, 1, 1e-3, fresh_clips=2)


def test_a_recipe_survives_its_file(tmp_path):
    for name in ("features", "paper"):
        write_recipe(recipe(name), tmp_path / "r.json")
        assert read_recipe(tmp_path / "r.json") == recipe(name) == recipe(str(tmp_path / "r.json"))
    plain = json.loads((tmp_path / "r.json").read_text())
    for broken in ({**plain, "epochs": 3}, {**plain, "phases": [{"objective": "scores"}]}, {}, []):
        (tmp_path / "r.json").write_text(json.dumps(broken))
        with pytest.raises(InvalidInputError, match=r"r\.json"):
            read_recipe(tmp_path / "r.json")


# The blocks' training form and the places in them


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_student_maps_are_the_networks_own(logmel, mode):
    network = random_network(DYMN)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    getattr(network, mode)()
    maps = student_maps(network, logmel)
    out = network(logmel, taps=("block3", "block14", "hidden"))
    torch.testing.assert_close(maps.logits, out.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(maps.stages[3].out.mean((2, 3)), out.taps["block3"], atol=1e-4, rtol=1e-4)


def test_student_gradients_are_the_networks_own(logmel):
    network = random_network(DYMN).double()
    grads = []
    for run in (lambda: student_maps(network, logmel.double()).logits, lambda: network(logmel.double()).logits):
        network.zero_grad()
        run().square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], atol=1e-6, rtol=1e-6, msg=name)


def test_teacher_maps_are_the_networks_own(logmel):
    network = random_network(MN)
    maps = teacher_maps(network, logmel)
    out = network(logmel, taps=("stem", "block5", "block14", "embedding"))
    torch.testing.assert_close(maps.logits, out.logits)
    torch.testing.assert_close(maps.before.mean((2, 3)), out.taps["stem"])
    torch.testing.assert_close(maps.stages[5].out.mean((2, 3)), out.taps["block5"])
    assert len(maps.stages) == 15 and maps.given(6) is maps.stages[5].out
    later = teacher_maps(network, maps.given(6), first=6)
    torch.testing.assert_close(later.logits, out.logits)


def test_a_student_inherits_all_that_is_static(logmel):
    teacher, student = random_network(MN), random_network(DYMN, 1)
    assert exact_blocks(teacher) == 3
    before = teacher_maps(teacher, logmel).logits
    inherit(student, teacher, logmel)
    ours, theirs = student(logmel, taps=("stem", "block2")), teacher(logmel, taps=("stem", "block2"))
    for name in ("stem", "block2"):  # as far as a DyMN can repeat it, exactly
        torch.testing.assert_close(ours.taps[name], theirs.taps[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(theirs.logits, before)
    maps = teacher_maps(teacher, logmel)
    for number in (4, 12):  # and in every block up to what follows the depthwise convolution
        stage = student_maps(student, maps.given(number), first=number).stages[0]
        torch.testing.assert_close(stage.filtered, maps.stages[number].filtered, atol=1e-4, rtol=1e-4)


def trained(objective, teacher, student, x, steps=40, **options):
    """Losses of a student that learns with one objective."""
    phase = Phase(objective, steps, 1.0, len(x), 1e-2, **options)
    scale = map_variances([teacher_maps(teacher, x)])
    front = teacher_maps(teacher, x)
    begin = front.given(phase.first_block)
    taught = teacher_maps(teacher, begin, first=phase.first_block)
    set_trainable(phase, student)
    rate = 1e-2 if objective == "gates" else 1e-3
    optimiser = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        if objective == "gates":
            loss, parts = gates_objective(phase, student, taught, scale)
        else:
            loss, parts = whole_objective(phase, student, begin, taught, scale)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, parts


@pytest.mark.parametrize("objective", ["gates", "whole"])
def test_student_learns_from_features(logmel, objective):
    teacher, student = random_network(MN), random_network(DYMN, 1)
    inherit(student, teacher, logmel)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    losses, parts = trained(objective, teacher, student, logmel, first_block=3, first_kernel_block=10)
    assert np.mean(losses[-5:]) < 0.5 * losses[0], losses
    blocks = [name for name in parts if name.startswith("block")]
    assert blocks == [f"block{i}" for i in range(3, 15)]
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("in_c", "layers.0.", "layers.1.", "layers.2.")) for name in changed)
    assert not any("running" in name for name in changed)
    assert any(name.startswith("classifier") for name in changed) == (objective == "whole")
    assert ("layers.12.depth_conv.weight" in changed) == (objective == "whole")
    assert "layers.5.depth_conv.weight" not in changed and "layers.5.depth_act.coef_net.0.weight" in changed


def test_gates_are_right_where_the_whole_is(logmel):
    """Nothing is left to learn where teacher and student are one: the errors are those of blocks that differ."""
    teacher, student = random_network(MN), random_network(DYMN, 1)
    inherit(student, teacher, logmel)
    maps = teacher_maps(teacher, logmel)
    _, parts = gates_objective(Phase("gates", 1, 1.0, 2, 1e-3), student, maps, map_variances([maps]))
    assert all(parts[f"block{i}"] < 1e-9 for i in range(3)) and parts["block3"] > 1e-9


def test_a_pool_keeps_the_last_clips():
    pool = MapPool(4)
    pool.put([torch.arange(3.0)[:, None], 10 * torch.arange(3.0)[:, None]], 0)
    first, second = pool.draw(np.random.default_rng(0), 3, 1)
    assert first[0] == 2 and set(first.flatten().tolist()) <= {0.0, 1.0, 2.0}
    torch.testing.assert_close(10 * first, second)
    pool.put([torch.arange(3.0, 6.0)[:, None]] * 2, 3)
    seen = set()
    for seed in range(30):
        seen |= set(pool.draw(np.random.default_rng(seed), 3, 1)[0].flatten().tolist())
    assert seen == {2.0, 3.0, 4.0, 5.0}


def test_feature_objectives_need_a_teacher_of_the_same_shape():
    with pytest.raises(InvalidInputError, match="width"):
        check_teacher(build_network(NetworkConfig("mn", 0.2)), build_network(DYMN))
    with pytest.raises(InvalidInputError, match="static MN"):
        check_teacher(build_network(DYMN), build_network(DYMN))


def test_ensemble_is_the_mean_of_scores(logmel):
    teachers = [random_network(MN, seed) for seed in (1, 2)]
    expected = sum(teacher(logmel).logits.sigmoid() for teacher in teachers) / 2
    torch.testing.assert_close(ensemble_scores(teachers, logmel), expected)
