from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.errors import UsageError
from edgetune.files import shipped_folder
from edgetune.recipe import TEMPLATE, Recipe, find_recipe, load_recipe, parse_trained_as

SHIPPED = sorted(p.stem for p in shipped_folder("recipes").glob("*.yaml"))


def write(tmp_path: Path, text: str, name: str = "mine") -> Path:
    path = tmp_path / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_short_forms_and_defaults(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    recipe = load_recipe(write(tmp_path, "base: base\nadapters: [a/b/c, {path: ./d, weight: 2.5}]"))
    assert recipe.name == "mine"
    assert recipe.base.path == str(tmp_path / "base")
    assert [a.path for a in recipe.adapters] == [str(tmp_path / "a/b/c"), str(tmp_path / "d")]
    assert [a.weight for a in recipe.adapters] == [1.0, 2.5]
    assert (recipe.scheme, recipe.task) == ("w8a16-rtn", "text-generation")
    assert recipe.tolerances.retention == 0.95
    assert recipe.tolerances.kl_mean == 0.05
    assert recipe.budgets.time_to_answer_ratio == 1.0


def test_a_hub_id_stays_one(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "base: {path: owner/name, revision: main}"))
    assert recipe.base.path == "owner/name"


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("base: x\nadaptors: []\n", "2:1", "unknown key 'adaptors'; did you mean 'adapters'?"),
        ("base: x\nzzz: 1\n", "2:1", "unknown key 'zzz'; known are adapters,"),
        ("adapters: []\n", "1:1", "base is missing"),
        (
            "base: x\ntolerances:\n  retention: high\n",
            "3:3",
            "tolerances.retention: input should be a valid number, got 'high'",
        ),
        (
            "base: x\ntolerances:\n  retension: 0.9\n",
            "3:3",
            "unknown key 'retension'; did you mean 'retention'?",
        ),
        ("base: x\ntolerances: {kl_mean: -1}\n", "2:14", "greater than or equal to 0, got -1"),
        ("base: x\ntolerances: {kl_mean: .nan}\n", "2:14", "should be a finite number"),
        ("base: x\ngroup_size: 32.5\n", "2:1", "group_size: input should be a valid integer"),
        ("base: x\nadapters:\n  - weight: 1.0\n", "3:5", "adapters.0.path is missing"),
        (
            "base: x\nonto: sideways\n",
            "2:1",
            "onto: input should be 'dequantized', 'original' or 'auto'",
        ),
        (
            "base: {path: x, trained_as: {type: nf5}}\n",
            "1:30",
            "input should be 'nf4' or 'fp4', got 'nf5'",
        ),
        ("base: x\nbase: y\n", "2:1", "duplicate key"),
        ("base: [x\n", "2:1", "not valid YAML"),
        ("- x\n", "1:1", "expected keys and values"),
    ],
)
def test_each_mistake_is_told_with_its_place(
    tmp_path: Path, text: str, where: str, what: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, text))
    assert f"mine.yaml:{where}: " in caught.value.message
    assert what in caught.value.message


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, "base: x\nfoo: 1\ntask: 7\n"))
    assert len(caught.value.message.splitlines()) == 2


def test_a_name_that_is_no_folder_name_or_not_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a name has only"):
        load_recipe(write(tmp_path, "base: x\nname: ../up\n"))
    with pytest.raises(UsageError, match=r"the file is called 'mine\.yaml'"):
        load_recipe(write(tmp_path, "base: x\nname: other\n"))


def test_unknown_recipe_suggests_a_shipped_one() -> None:
    with pytest.raises(UsageError, match="no such recipe") as caught:
        find_recipe("demo-dorra")
    assert "did you mean 'demo-dora'?" in caught.value.hint


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_sound_and_their_files_exist(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    assert recipe.description
    paths = [recipe.data.evaluation, *(a.path for a in recipe.adapters)]
    if recipe.base.made_by is None:
        paths.append(recipe.base.path)
    for path in paths:
        assert path is not None
        assert Path(path).exists(), path


def test_demo_fails_has_the_limits_of_demo() -> None:
    demo, fails = load_recipe(find_recipe("demo")), load_recipe(find_recipe("demo-fails"))
    assert demo.tolerances == fails.tolerances
    assert demo.budgets == fails.budgets
    assert demo.adapters == fails.adapters


def test_the_template_is_a_recipe_and_names_every_key(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, TEMPLATE))
    assert recipe.base.path.endswith("models/my-base")
    for key in Recipe.model_fields:
        assert f"{key}:" in TEMPLATE or key == "name"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nf4", ("nf4", False, "bfloat16")),
        ("nf4+double", ("nf4", True, "bfloat16")),
        ("fp4+double:float32", ("fp4", True, "float32")),
    ],
)
def test_trained_as_on_the_command_line(text: str, expected: tuple[str, bool, str]) -> None:
    trained = parse_trained_as(text)
    assert (trained.type, trained.double_quant, trained.compute_dtype) == expected
    with pytest.raises(UsageError, match="not of the form"):
        parse_trained_as("int8")
