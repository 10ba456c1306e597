"""Recipes: what they are taken apart into, and what is refused before anything runs."""

from pathlib import Path

import pytest

from gradscope.errors import GradscopeError
from gradscope.measure.options import AnalyzeOptions
from gradscope.study.expansion import Study, read_study

GRID = '[grid]\nmodes = ["sl", "rl"]\nseeds = [0, 1]\n'
ANALYZE = '[[measure]]\ncommand = "analyze"\n'


def read(tmp_path: Path, text: str, **changes: object) -> Study:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return read_study(path, **changes)  # type: ignore[arg-type]


def labels(study: Study) -> list[str]:
    return [model.label for model in study.models]


def test_a_grid_is_every_mode_and_seed(tmp_path: Path) -> None:
    study = read(tmp_path, GRID + ANALYZE)
    assert study.name == "study"
    assert labels(study) == ["sl-s0", "sl-s1", "rl-s0", "rl-s1"]
    assert [(one.name, one.data, one.models) for one in study.measurements] == [
        ("analyze", "digits", ("sl-s0", "sl-s1", "rl-s0", "rl-s1"))
    ]


def test_a_label_says_what_the_grid_has_more_than_one_of(tmp_path: Path) -> None:
    text = '[grid]\ndata = ["digits", "small"]\narchitectures = ["cnn2", "cnn4"]\nmodes = ["sl"]\n' + ANALYZE
    study = read(tmp_path, text + '[data.small]\ndataset = "npz"\ndata_root = "a.npz"\n')
    assert labels(study) == [
        *("digits-cnn2-sl-s0", "digits-cnn4-sl-s0"),
        *("small-cnn2-sl-s0", "small-cnn4-sl-s0"),
    ]
    assert study.source("small").dataset == "npz"
    assert study.source("digits").dataset == "digits"
    # Commands that compare models want them on the same images.
    assert [(one.name, one.models) for one in study.measurements] == [
        ("analyze-digits", ("digits-cnn2-sl-s0", "digits-cnn4-sl-s0")),
        ("analyze-small", ("small-cnn2-sl-s0", "small-cnn4-sl-s0")),
    ]


def test_options_of_all_models_of_a_mode_and_of_one_model(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        GRID + '[training]\nepochs = 3\nset = ["shift=0.1"]\n[modes.rl]\nepochs = 7\nset = ["batch_size=32"]\n'
        '[models.long]\nmode = "sl"\nepochs = 90\nseeds = [1]\n',
    )
    options = {model.label: model.options for model in study.models}
    assert {label: one.epochs for label, one in options.items()} == {
        **{"sl-s0": 3, "sl-s1": 3, "rl-s0": 7, "rl-s1": 7, "long-s1": 90},
    }
    assert options["rl-s0"].set == ("shift=0.1", "batch_size=32")
    assert options["sl-s0"].set == ("shift=0.1",)


def test_a_model_comes_after_the_one_it_begins_with(tmp_path: Path) -> None:
    text = '[models.third]\nmode = "sl"\nfrom = "second"\n[models.second]\nmode = "rl"\nfrom = "sl"\n'
    study = read(tmp_path, text + '[grid]\nmodes = ["sl"]\n')
    assert [(model.label, model.of) for model in study.models] == [
        ("sl-s0", None),
        ("second-s0", "sl-s0"),
        ("third-s0", "second-s0"),
    ]


def test_models_are_scaled_by_factors(tmp_path: Path) -> None:
    text = GRID + '[[scale]]\nmodels = ["rl"]\nfactors = [0.1, 10, "calibrated"]\n'
    study = read(tmp_path, text, seeds=[4])
    scaled = [(model.label, model.of, model.factor) for model in study.models if model.factor is not None]
    assert scaled == [
        ("rl-x0.1-s4", "rl-s4", 0.1),
        ("rl-x10-s4", "rl-s4", 10.0),
        ("rl-calibrated-s4", "rl-s4", "calibrated"),
    ]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("sl", ["sl-s0", "sl-s1"]),
        ("*-s1", ["sl-s1", "rl-s1"]),
        ("rl,sl-s0", ["rl-s0", "rl-s1", "sl-s0"]),
        ("*,!sl-s0", ["sl-s1", "rl-s0", "rl-s1"]),
    ],
)
def test_models_are_chosen_by_name_or_label(tmp_path: Path, patterns: str, expected: list[str]) -> None:
    (measurement,) = read(tmp_path, GRID + ANALYZE + f'models = "{patterns}"\n').measurements
    assert list(measurement.models) == expected


def test_scaled_models_are_measured_where_they_are_named(tmp_path: Path) -> None:
    text = GRID + "[[scale]]\nfactors = [10]\n" + ANALYZE
    (measurement,) = read(tmp_path, text, seeds=[0]).measurements
    assert measurement.models == ("sl-s0", "rl-s0")
    (measurement,) = read(tmp_path, text + 'models = "sl*"\n', seeds=[0]).measurements
    assert measurement.models == ("sl-s0", "sl-x10-s0")


def test_other_models_have_a_role(tmp_path: Path) -> None:
    text = GRID + '[[measure]]\ncommand = "attack"\nmodels = "rl"\nsurrogate = "sl"\nattacks = "transfer"\n'
    (measurement,) = read(tmp_path, text).measurements
    assert measurement.others == {"surrogate": ("sl-s0", "sl-s1")}


def test_settings_and_data_root_of_the_command_line(tmp_path: Path) -> None:
    text = '[grid]\ndata = ["digits", "cifar10"]\nmodes = ["sl"]\n'
    study = read(tmp_path, text, settings=["training.epochs=2", "data.cifar10.dataset=folder"], data_root=Path("d"))
    assert study.models[0].options.epochs == 2
    assert (study.source("cifar10").dataset, study.source("cifar10").data_root) == ("folder", Path("d"))
    assert study.source("digits").data_root is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[gird]\nmodes = ["sl"]\n', r"gird: 'gird' is unknown; did you mean 'grid'\?"),
        ('[grid]\nmode = ["sl"]\n', r"grid.mode: 'mode' is unknown; did you mean 'modes'\?"),
        ('[grid]\nmodes = ["sll"]\n', r"grid.modes: 'sll' is unknown; did you mean 'sl'\?"),
        ('[grid]\nmodes = ["sl", "sl"]\n', "grid.modes: names must be distinct, got 'sl' twice"),
        (GRID + "[grid.x]\n", "grid.x"),
        (
            '[grid]\nmodes = ["sl"]\nseeds = [0, 0]\n',
            "grid.seeds: names must be distinct, got 0 twice",
        ),
        ('[grid]\nmodes = ["sl"]\nseeds = [-1]\n', "grid.seeds.0 must be at least 0, got -1"),
        ('[grid]\nmodes = ["sl"]\nseeds = []\n', "grid.seeds"),
        ('[grid]\nmodes = ["sl"]\ndata = ["cifra10"]\n', r"data.cifra10.dataset: .* did you mean 'cifar10'"),
        ('[grid]\nmodes = ["sl"]\narchitectures = ["cnn"]\n', "grid.architectures: 'cnn' is unknown"),
        ("", "grid.modes must be given, or a table"),
        (GRID + "[modes.rll]\nepochs = 1\n", r"modes: 'rll' is unknown; did you mean 'rl'\?"),
        (
            GRID + '[models.rl]\nmode = "rl"\n',
            "models.rl: the name must differ from .*, .* same file",
        ),
        (GRID + '[models."a/b"]\nmode = "rl"\n', r"models: names must consist of letters, digits, .*, got 'a/b'"),
        (GRID + '[models.a]\nmode = "rl"\nfrmo = "sl"\n', r"'frmo' is unknown; did you mean 'from'\?"),
        (GRID + '[models.a]\nmode = "rl"\nfrom = "ls"\n', r"models.a.from: 'ls' is unknown; did you mean 'sl'\?"),
        (GRID + "[models.a]\nepochs = 2\n", "models.a: mode or phases must be given"),
        (
            '[models.a]\nmode = "sl"\nfrom = "b"\n[models.b]\nmode = "sl"\nfrom = "a"\n',
            "models.a.from must not form a cycle, got a from b from a",
        ),
        ('[models.a]\nmode = "sl"\nfrom = "a"\n', "models.a.from must not form a cycle, got a from a"),
        (
            GRID + '[models.a]\nmode = "rl"\nfrom = "sl"\nseeds = [5]\n',
            "models.a.from: 'a-s5' needs 'sl-s5', which does not exist",
        ),
        (GRID + '[models.SL-long]\nmode = "sl"\n[models.sl-LONG]\nmode = "sl"\n', "both would write the same file"),
        (
            GRID + '[models.rl-x10]\nmode = "rl"\n[[scale]]\nmodels = "rl"\nfactors = [10]\n',
            "distinct, got .rl-x10-s0. twice",
        ),
        (GRID + '[[scale]]\nmodels = "rk"\nfactors = [10]\n', "scale.0.models: 'rk' is unknown"),
        (GRID + "[[scale]]\nfactors = [0]\n", "scale.0.factors"),
        (
            GRID + ANALYZE + ANALYZE,
            "measure: names must be distinct, got 'analyze' twice",
        ),
        (
            GRID + ANALYZE + 'name = "figures"\n',
            "measure: names must be distinct, got 'figures' twice",
        ),
        (GRID + '[[measure]]\ncommand = "analyse"\n', r"measure.0.command: 'analyse' .* did you mean 'analyze'"),
        (GRID + '[[measure]]\nname = "a"\n', "measure.0.command must be one of analyze, .*, got None"),
        (GRID + ANALYZE + "stesp = 3\n", r"measure analyze: 'stesp' is unknown; did you mean 'steps'\?"),
        (GRID + ANALYZE + "steps = 0\n", "measure analyze: steps must be at least 1, got 0"),
        (GRID + ANALYZE + 'samples = "many"\n', "measure analyze: samples must be a whole number, got 'many'"),
        (GRID + ANALYZE + 'attack = "pdg"\n', r"measure analyze: attack: 'pdg' is unknown; did you mean 'pgd'\?"),
        (GRID + ANALYZE + 'metrics = "cosin"\n', "measure analyze: metrics: 'cosin' .* did you mean 'cosine'"),
        (GRID + ANALYZE + 'models = "sl-adv"\n', "measure analyze: models: 'sl-adv' is unknown"),
        (GRID + ANALYZE + 'models = ["sl", "!sl"]\n', "measure analyze: models must choose at least one model"),
        (GRID + ANALYZE + 'epsilon = "8/0"\n', "measure analyze: epsilon must be a number of at least 0.* got '8/0'"),
        (GRID + '[[measure]]\ncommand = "attack"\nattacks = ["sqare"]\n', "did you mean 'square'"),
        (GRID + '[[measure]]\ncommand = "audit"\nbudget = "quik"\n', r"budget: 'quik' .* did you mean 'quick'\?"),
        (
            GRID + '[[measure]]\ncommand = "landscape"\nline = true\n',
            "line must be left out unless `space` is weights, got True",
        ),
        (
            GRID + '[[measure]]\ncommand = "landscape"\nspace = "weights"\ntowards = "sl"\n',
            "measure landscape: towards must be one model, got sl-s0, sl-s1",
        ),
        (
            GRID + '[[measure]]\ncommand = "attack"\nattacks = "pgd"\nsurrogate = "sl"\n',
            "measure attack: surrogate must be left out unless one of .*transfer is among the attacks",
        ),
        (
            GRID + '[[measure]]\ncommand = "transfer"\nmodels = "sl-s0"\n',
            "measure transfer: .*at least two models .*got 1",
        ),
        (
            GRID + '[[measure]]\ncommand = "landscape"\npoints = 1\n',
            "measure landscape: points must be at least 2, got 1",
        ),
        ("[grid\n", "is not TOML"),
        (GRID + "[data]\ndigits = 3\n", "data.digits must be a table, got 3"),
        (GRID + '[[measure]]\nname = "../x"\ncommand = "analyze"\n', r"measure: names must consist of letters.*'../x'"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(GradscopeError, match=message) as raised:
        read(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match=r"recipe: .*none\.toml cannot be read: No such file"):
        read_study(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "analyses").glob("*.toml")), ids=lambda one: one.stem
)
def test_the_recipes_that_come_along_are_sound(path: Path) -> None:
    study = read_study(path)
    assert study.recipe.description
    assert study.models
    assert study.measurements


def test_a_recipe_is_laid_over_the_one_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        GRID + ANALYZE + 'steps = 5\n[[measure]]\ncommand = "attack"\n[training]\nepochs = 1\nbatch_size = 64\n'
    )
    study = read(
        tmp_path,
        'extends = "base.toml"\n[training]\nepochs = 2\n[[measure]]\ncommand = "analyze"\nsamples = 7\n'
        '[[measure]]\ncommand = "transfer"\n',
    )
    assert labels(study) == ["sl-s0", "sl-s1", "rl-s0", "rl-s1"]
    assert {(model.options.epochs, model.options.batch_size) for model in study.models} == {(2, 64)}
    assert [one.name for one in study.measurements] == ["analyze", "attack", "transfer"]
    analyze = study.measurements[0].options
    assert isinstance(analyze, AnalyzeOptions)
    assert (analyze.steps, analyze.samples) == (5, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "study.toml"\n', "extends must not lead back to .*study.toml"),
        ('extends = "none.toml"\n', "recipe: .*none.toml cannot be read"),
        ("extends = 3\n", "extends must be the path of another recipe, got 3"),
    ],
)
def test_a_recipe_that_cannot_be_extended_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(GradscopeError, match=message):
        read(tmp_path, text + GRID)


def test_a_foreign_model_is_measured_beside_trained_ones(tmp_path: Path) -> None:
    study = read(tmp_path, GRID + ANALYZE + '[foreign.theirs]\nmodel = "torchvision:resnet18"\n')
    assert labels(study) == ["sl-s0", "sl-s1", "rl-s0", "rl-s1"], "it is not trained"
    assert study.measurements[0].models == ("sl-s0", "sl-s1", "rl-s0", "rl-s1", "theirs")
    with pytest.raises(GradscopeError, match="'cifar' is unknown"):
        read(tmp_path, GRID + ANALYZE + '[foreign.theirs]\nmodel = "a.pt"\ndata = "cifar"\n')
