"""Judging an attack through the door: what it may do wrong, what comes back, and that nothing else changes."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import nn

import gradscope as gs
from gradscope.attacks.threat import ThreatModel
from gradscope.config import Budget
from gradscope.errors import Caution, GradscopeError
from gradscope.judging.attacks import Batch, attack_on_trial
from tests.conftest import first_of
from tests.judging.bugs import SHARP, mean_cross_entropy, pgd, wrong_sign

BALL = {"norm": "linf", "epsilon": 0.1, "budget": "quick", "progress": False}


@pytest.fixture
def some(digits):
    """Images and labels of the test set."""
    images, labels = digits.test.batch(torch.arange(60), "cpu")
    return images, labels


def raising(model, x, y):
    raise ValueError("no\nway")


def failing_in_torch(model, x, y):
    return torch.nn.functional.linear(x, x.flatten())


def swapped(x, y, model):
    return x


def cropped(model, x, y):
    return x[:, :, 1:]


def of_integers(model, x, y):
    return (255 * x).to(torch.uint8)


def of_nothing(model, x, y):
    return None


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (raising, "attack must run on the model, raising raised ValueError: no [(]test_judge.py:[0-9]+[)]"),
        (failing_in_torch, "raised RuntimeError: .* [(]test_judge.py:[0-9]+[)]"),
        (swapped, "attack must return floating-point images (.*), swapped returned the model"),
        (cropped, "attack must return floating-point images (.*), cropped returned torch.float32"),
        (of_integers, "attack must return floating-point images (.*), of_integers returned torch.uint8"),
        (of_nothing, "attack must return floating-point images (.*), of_nothing returned NoneType"),
        (3, "attack must be a function, an attack object or a name, got int"),
        ("pgdd", "attack 'pgdd' is unknown|did you mean"),
        ("no.such:thing", "attack: no.such:thing runs the code of no.such; pass `trust_code`"),
    ],
)
def test_what_is_no_attack_is_refused_in_one_line(models, some, attack, said):
    with pytest.raises(GradscopeError, match=said) as error:
        gs.judge(attack, models("SL"), *some, **BALL)
    assert "\n" not in str(error.value)


def of_nan(model, x, y):
    return x * torch.nan


def of_doubles(model, x, y):
    return pgd(model, x, y).double()


def changing_its_input(model, x, y):
    x.copy_(pgd(model, x, y))
    y.zero_()
    return x


def leaving_traces(model, x, y):
    model.train()
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
        parameter.requires_grad_()
    return pgd(model, x, y)


@pytest.mark.usefixtures("little_work")
@pytest.mark.parametrize("attack", [of_nan, of_doubles, changing_its_input, leaving_traces])
def test_an_unruly_attack_is_judged_and_leaves_no_trace(models, some, digest, attack):
    model = copy.deepcopy(models("SL"))
    before, images, labels = digest(model), some[0].clone(), some[1].clone()
    found = gs.judge(attack, model, *some, **BALL)
    assert digest(model) == before
    assert torch.equal(some[0], images)
    assert torch.equal(some[1], labels)
    assert found.verdict == ("invalid examples" if attack is of_nan else "the attack is sound")


def of_some_infinite(model, x, y):
    x = x.clone()
    x[::2, :, 0, 0] = torch.inf
    return x


@pytest.mark.usefixtures("little_work")
@pytest.mark.parametrize(("attack", "share"), [(of_nan, "100.0 %"), (of_some_infinite, "50.0 %")])
def test_examples_that_are_not_finite_are_invalid(models, some, attack, share):
    right = models("SL")(some[0]).argmax(dim=1) == some[1]
    found = gs.judge(attack, models("SL"), some[0][right][:50], some[1][right][:50], **BALL)
    assert (found.verdict, found.parts) == ("invalid examples", ())
    assert found.finding.startswith(f"Of its examples {share} are NaN or infinite. Put back into ball and box, with")
    assert not found.frame()["named"].any()


def idle(model, x, y):
    return x


@pytest.mark.usefixtures("little_work")
@pytest.mark.parametrize(("epsilon", "verdict"), [(0.001, "inconclusive"), (0.2, "the attack is blind")])
def test_where_nothing_fools_nothing_is_sound(models, some, epsilon, verdict):
    found = gs.judge(idle, models("SL"), *some, **BALL | {"epsilon": epsilon})
    assert found.verdict == verdict
    assert ("use a larger epsilon" in found.finding) == (verdict == "inconclusive")
    assert found.left is not None


def claiming(model, x, y):
    return x, torch.ones(len(x), dtype=torch.bool)


@pytest.mark.usefixtures("little_work")
def test_what_an_attack_reports_is_judged_too(models, some):
    found = gs.judge(claiming, models("SL"), *some, **BALL)
    right = int(found.frame().query("role == 'clean'")["left"].iloc[0] * 60 + 0.5)
    assert f"Its own report of success is wrong for {right} of {right} examples." in found.finding


class _Levels(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model((6 * images).round() / 6)


class _CutOff(_Levels):
    def forward(self, images):
        return super().forward(images.detach())


@pytest.mark.usefixtures("little_work")
@pytest.mark.filterwarnings("ignore::gradscope.errors.Caution")
def test_a_model_cut_off_from_the_image_is_said_to_give_no_gradient(models, some):
    model = _CutOff(copy.deepcopy(models("SL")).requires_grad_(requires_grad=False)).eval()
    with pytest.raises(GradscopeError, match=r"bugs.py:[0-9]+[)]; the model gives no gradient: give `backward`"):
        gs.judge(pgd, model, *some, **BALL)
    found = gs.judge("square", model, *some, **BALL)
    assert "The model gives no gradient on 100.0 % of these images" in found.finding


def labelling(model, x, y):
    examples = pgd(model, x, y)
    labels = model(examples).argmax(dim=1)
    labels[:7] = (labels[:7] + 1) % 10
    return examples, labels


@pytest.mark.usefixtures("little_work")
def test_labels_that_an_attack_returns_are_set_beside_the_predictions(models, some):
    right = models("SL")(some[0]).argmax(dim=1) == some[1]
    found = gs.judge(labelling, models("SL"), some[0][right][:40], some[1][right][:40], **BALL)
    said = "The labels that it returned differ from the model's predictions on 7 of 40 examples."
    assert said in found.finding
    assert "What it reports" not in found.finding


def of_the_next_label(model, x, y):
    return pgd(model, x, (y + 1) % 10)


def of_random_labels(model, x, y):
    return pgd(model, x, torch.randint(0, 10, y.shape))


def downhill(model, x, y):
    return pgd(model, x, y, loss=wrong_sign)


@pytest.mark.usefixtures("little_work")
@pytest.mark.parametrize("attack", [of_the_next_label, of_random_labels, downhill])
@pytest.mark.parametrize("name", first_of(["SL", "SL-adv"]))
def test_wrong_labels_are_told_from_a_wrong_sign(models, some, attack, name):
    found = gs.judge(attack, models(name), *some, **BALL)
    assert found.verdict == "the attack is blind"
    others = "It follows another loss or the loss of other labels: check that its labels are those of the images."
    down = "It minimises the cross-entropy loss instead of maximising it." if name == "SL" else "It minimises the "
    assert (others in found.finding) == (attack is not downhill)
    assert (down in found.finding) == (attack is downhill)


@pytest.mark.usefixtures("little_work")
@pytest.mark.parametrize("attack", [partial(pgd, epsilon=0.03), partial(pgd, epsilon=0.1), "pgd"])
def test_the_ball_that_an_attack_shows_is_set_beside_the_trials(models, some, attack):
    found = gs.judge(attack, models("SL"), *some, **BALL)
    differs = attack != "pgd" and attack.keywords["epsilon"] == 0.03
    assert ("Your attack is set to linf 0.03; the trial uses linf 0.1." in found.finding) == differs
    assert ("the trial uses" in found.finding) == differs


@pytest.mark.usefixtures("little_work")
@pytest.mark.filterwarnings("ignore::gradscope.errors.Caution")
@pytest.mark.parametrize("given", [{}, {"backward": None}])
def test_a_model_without_a_gradient_is_said_to_give_none(models, some, given):
    model = models("SL")
    given = {"backward": model} if given else {}
    found = gs.judge(pgd, _Levels(model).eval(), *some, **BALL, **given)
    said = re.search(
        r"The model gives no gradient on (\S+) % of these images: give `backward=` \(see docs/judge.md\)", found.finding
    )
    assert (said is None) == bool(given)
    assert said is None or float(said[1]) > 90
    assert "its gradient was 0" not in found.finding


def test_a_judgement_repeats_and_is_read_back(models, some, tmp_path):
    attack = partial(pgd, norm="l2", loss=mean_cross_entropy, floor=1e-6)
    ball = BALL | {"norm": "l2", "epsilon": 0.5}
    first, second = (gs.judge(attack, models(SHARP[0]), *some, **ball) for _ in range(2))
    assert first.frame().equals(second.frame())
    assert first.verdict == "the attack is blind"
    assert first.parts[0] == "norm floor"
    assert first.bound <= first.left
    assert gs.read(first.save(tmp_path / "out")) == first
    assert (tmp_path / "out" / "figures" / "judge-repairs.png").exists()
    lines = first.summary()
    assert "THE ATTACK IS BLIND: norm floor" in lines
    assert "loss cross-entropy, reduction mean" in lines
    page = gs.report(tmp_path / "out").read_text()
    before, _, chapter = page.partition("The attack on trial</h2>")
    assert first.finding.split(";")[0] in before
    assert first.finding.split(";")[0] not in chapter
    assert '<article class="verdict accuses">\n<h2>pgd on Behind: the attack is blind</h2>' in before
    assert f"Part: {', '.join(first.parts)}" in before
    assert "Read of pgd on Behind: 20 gradients, loss cross-entropy, reduction mean" in chapter
    assert "No audit is among these results" not in page


@pytest.mark.usefixtures("little_work")
def test_the_table_adds_up(models, some):
    found = gs.judge(partial(pgd, size=0.01, start=False), models("SL"), *some, **BALL)
    rows = found.frame()
    assert list(rows["role"].unique()) == ["clean", "attack", "ours", "repair", "all"]
    compared = rows[rows["gain"].notna()]
    assert ((found.left - compared["left"] - compared["gain"]).abs() < 1e-9).all()
    assert (compared["gain_low"] <= compared["gain"]).all()
    assert (compared["gain"] <= compared["gain_high"]).all()
    assert rows["left"].min() == found.bound == rows[rows["role"] == "all"]["left"].iloc[0]
    assert set(rows[rows["named"] == 1]["part"]) == set(found.parts)


def test_too_few_right_images_say_nothing(models, some):
    found = gs.judge("pgd", models("SL"), some[0][:20], some[1][:20], **BALL)
    assert (found.verdict, found.parts) == ("inconclusive", ())
    right = int((models("SL")(some[0][:20]).argmax(dim=1) == some[1][:20]).sum())
    said = f"{right} of 20 images are right when clean, 30 are needed: the data set has no more"
    assert found.finding == said


def test_it_says_how_many_images_to_ask_for(models):
    found = gs.judge("pgd", {"sl": models("SL")}, dataset="digits", samples=20, **BALL)
    right = round(20 * found.frame()["left"].iloc[0])
    assert found.finding.endswith(
        f"{right} of 20 images are right when clean, 30 are needed: ask for {-(-30 * 20 * 11 // (10 * right))} or more"
    )


def test_an_attack_that_was_not_run_leaves_no_number(models, some, tmp_path):
    found = gs.judge("pgd", models("SL"), some[0][:20], some[1][:20], **BALL)
    assert (found.left, found.bound) == (None, None)
    rows = found.frame()
    assert list(rows["role"]) == ["clean", "attack", "all"]
    assert rows["left"].isna().tolist() == [False, True, True]
    assert rows["n"].tolist() == [20, 0, 0]
    assert "under the attack         not run" in found.summary()
    assert "under all                not run" in found.summary()
    assert "pgd was not run" in repr(found)
    assert gs.read(found.save(tmp_path / "out")) == found


class _Random(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images + 0.2 * torch.randn_like(images))


def test_of_a_random_model_nothing_is_said(models, some):
    with pytest.warns(Caution, match="two passes over one image differ"):
        found = gs.judge("pgd", _Random(models("SL")).eval(), *some, **BALL)
    assert found.verdict == "inconclusive"
    assert "random" in found.finding


def of_float32_alone(model, x, y):
    logits = model(x)
    assert logits.dtype == torch.float32, "float32 alone"
    return pgd(model, x, y, size=0.01, start=False)


@pytest.mark.usefixtures("little_work")
def test_a_repair_that_the_attack_does_not_bear_is_left_out_with_its_reason(models, some):
    found = gs.judge(of_float32_alone, models("SL"), *some, **BALL)
    precision = found.frame().query("part == 'precision'").iloc[0]
    assert precision["n"] == 0
    assert "raised AssertionError: float32 alone" in precision["finding"]
    assert "did not run: attack must run" in found.summary()
    assert found.parts[0] == "step size"


def nudging(model, x, y, alpha=0.001, steps=20):
    return pgd(model, x, y, size=alpha / 0.1, iterations_of=steps)


def test_settings_among_a_functions_parameters_are_repaired_there(models, some):
    found = gs.judge(nudging, models("SL"), *some, **BALL)
    assert found.verdict == "the attack is blind"
    assert found.parts[0] == "step size"
    assert any("with 80 steps" in name for name in found.frame()["name"])


@pytest.mark.parametrize(("name", "size"), [("pgd", 0.0625), ("pgd-paper", None), ("pgd-large-steps", 0.0625)])
def test_more_steps_of_ours_are_as_long(models, some, name, size):
    batch = Batch(*some, torch.arange(60), 10, ThreatModel("l2", 0.5), 0)
    asked = attack_on_trial(name, Budget(steps=80, step_size=size))
    shown = attack_on_trial(name, Budget(steps=20))
    assert torch.equal(shown(models("SL"), batch, {"steps": 80})[0], asked(models("SL"), batch, {})[0])


def outside_the_box(model, x, y):
    return pgd(model, x, y, norm="l2", loss=mean_cross_entropy, floor=1e-6, box=False).clamp(0, 1)


@pytest.mark.usefixtures("little_work")
def test_another_call_undoes_nothing(models, some):
    found = gs.judge(outside_the_box, models(SHARP[0]), *some, **BALL | {"norm": "l2", "epsilon": 0.5}).frame()
    steps = found.query("part == 'steps'").iloc[0]
    assert steps["name"] == "called twice, going on from where it ended,"
    assert steps["gain"] >= 0


def hasty(model, x, y):
    return pgd(model, x, y, hasty=True)


@pytest.mark.usefixtures("little_work")
def test_an_attack_that_mixes_its_batch_is_given_the_first_images_alone(models, some, monkeypatch):
    monkeypatch.setattr("gradscope.judging.trial._ALONE", 40)
    found = gs.judge(hasty, models("SL"), *some, **BALL)
    row = found.frame().query("part == 'batch'").iloc[0]
    assert found.parts[0] == "batch"
    assert 40 <= row["n"] < 60
    said = f"given one image at a time it leaves {100 * row['left']:.1f} % of the first {row['n']}, not "
    assert said + f"{100 * (row['left'] + row['gain']):.1f} % (p = " in found.finding
    assert "because it mixes the images of a batch" in found.finding


def never_moving(model, x, y):
    return pgd(model, x, y, norm="l2", size=1.0, at_image=True)


@pytest.mark.usefixtures("little_work")
def test_an_attack_that_never_moves_is_told_so(models, some):
    ball = BALL | {"norm": "l2", "epsilon": 0.5}
    found, other = (gs.judge(attack, models("SL"), *some, **ball) for attack in (never_moving, along_the_gradient))
    assert "All 20 gradients were taken at one point: it never moves." in found.finding
    assert "at one point" in found.summary()
    names = found.frame().query("part == 'steps'")["name"].to_list()
    assert names == ["with every gradient taken where the last step led"]
    assert "one point" not in other.finding + other.summary()


def along_the_gradient(model, x, y):
    return pgd(model, x, y, norm="l2", raw=True)


def floored(model, x, y):
    return pgd(model, x, y, norm="l2", floor=0.1)


def floored_mean(model, x, y):
    return pgd(model, x, y, norm="l2", floor=1e-6, loss=mean_cross_entropy)


@pytest.mark.usefixtures("little_work")
@pytest.mark.parametrize(("attack", "has_floor"), [(along_the_gradient, False), (floored, True), (floored_mean, True)])
def test_a_floor_is_told_from_steps_as_long_as_the_gradient(models, some, attack, has_floor):
    found = gs.judge(attack, models(SHARP[0]), *some, **BALL | {"norm": "l2", "epsilon": 0.5})
    assert found.parts[0] == "norm floor"
    assert ("because the gradient is below the floor, about" in found.finding) is has_floor
    assert ("with each gradient normalised the same steps leave" in found.finding) is not has_floor
    assert ("because they are proportional to the gradient" in found.finding) is not has_floor


#: Attacks that a gate stops.
GATED = """
def idle(model, x, y):
    return x


def leaping(model, x, y):
    return x + 0.5
"""


@pytest.mark.usefixtures("little_work")
def test_the_command_takes_a_function(some, trained, tmp_path, monkeypatch, capsys):
    from gradscope.cli import main

    (tmp_path / "mine.py").write_text("def idle(model, x, y, scale=1.0):\n    return scale * x\n")
    monkeypatch.chdir(tmp_path)
    ask = ["judge", "mine:idle(scale=1)", trained[0], "--budget", "quick", "--samples", "60", "--no-figures"]
    with pytest.raises(SystemExit) as refused:
        main([*ask, "--out", "out"])
    assert refused.value.code == 2
    assert (
        "ATTACK: mine:idle(scale=1) runs the code of mine; pass --trust-code if you trust it" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit) as done:
        main([*ask, "--trust-code", "--out", "out"])
    assert not done.value.code
    assert "idle on sl: THE ATTACK IS BLIND" in capsys.readouterr().out
    assert gs.read(tmp_path / "out").verdict == "the attack is blind"


@pytest.mark.usefixtures("little_work")
@pytest.mark.parametrize(
    ("attack", "count", "gates", "code", "verdict"),
    [
        ("gated:idle", 60, ["--fail-on-blind", "--allow-inconclusive"], 3, "BLIND"),
        ("gated:leaping", 60, ["--fail-on-blind"], 3, "INVALID EXAMPLES"),
        ("apgd-t", 60, ["--fail-on-blind"], 0, "SOUND"),
        ("gated:idle", 20, ["--fail-on-blind"], 4, "INCONCLUSIVE"),
        ("gated:idle", 60, ["--fail-on-blind", "--epsilon", "0.001"], 4, "INCONCLUSIVE"),
        ("gated:idle", 20, ["--fail-on-blind", "--allow-inconclusive"], 0, "INCONCLUSIVE"),
    ],
)
def test_a_blind_attack_shuts_the_gate(trained, tmp_path, monkeypatch, capsys, attack, count, gates, code, verdict):
    from gradscope.cli import main

    ball = ["--norm", "linf", "--epsilon", "0.1", "--budget", "quick", "--samples", str(count), "--no-figures"]
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "gated.py").write_text(GATED)
    with pytest.raises(SystemExit) as done:
        main(["judge", attack, trained[0], "--trust-code", *ball, *gates, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert (done.value.code or 0) == code
    assert verdict in printed.out
    undecided = "gradscope: the gate could not be decided (sl: "
    assert (undecided in printed.err) == (code == 4)
