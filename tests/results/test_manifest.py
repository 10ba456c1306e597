import json

import pytest

from gradscope.errors import GradscopeError
from gradscope.results.manifest import Examined, Manifest, read_manifest


def test_what_a_manifest_lacks_is_none(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("{}")
    made, raw = read_manifest(path)
    assert raw == {}
    assert made == Manifest()
    assert (made.complete, made.seed, made.provenance, made.checkpoints) == (None, None, None, ())


def test_later_keys_are_left(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"kind": "x", "later": 1, "checkpoints": [{"label": "a", "later": [2]}]}))
    assert read_manifest(path)[0].checkpoints[0].label == "a"


@pytest.mark.parametrize(
    ("config", "epochs"),
    [
        (None, None),
        ({"phases": []}, None),
        ({"phases": [{"epochs": 2}, {"epochs": 3}]}, 5),
        ({"phases": [{"epochs": 2}, {}]}, None),
        ({"phases": 3}, None),
    ],
)
def test_epochs_are_of_all_phases(config, epochs):
    assert Examined(label="a", config=config).epochs == epochs


@pytest.mark.parametrize(("seconds", "total"), [(None, None), (2.5, 2.5), ({"a": 1.0, "b": 2.0}, 3.0), ({}, None)])
def test_seconds_add_up(seconds, total):
    assert Examined(seconds=seconds).total_seconds == total


def test_a_ball_is_said_where_it_is_known():
    made = Manifest(attacks={"pgd": {"norm": "l2", "epsilon": 0.5}, "square": {"meaning": "x"}, "odd": 3})
    assert [made.ball(name) for name in ("pgd", "square", "odd", "none")] == ["l2 0.5", "", "", ""]


@pytest.mark.parametrize("content", ["{", "[]", '{"attacks": []}', '{"checkpoints": [3]}', "[" * 100_000])
def test_damage_is_one_line(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(GradscopeError, match=r"^directory: .*manifest\.json is") as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(GradscopeError, match="cannot be read"):
        read_manifest(tmp_path / "manifest.json")
