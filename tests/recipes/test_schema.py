"""What a recipe file may hold, and what is said when it holds something else."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from effitrans.attention import OPERATORS
from effitrans.errors import UsageError
from effitrans.quantization import SCHEMES
from effitrans.recipes import find_recipe, json_schema, list_recipes, load_recipe
from effitrans.recipes.check import check_recipe

MINIMAL = {"name": "tiny", "task": "digits", "model": {"base": {"hidden_size": 16}}, "steps": [{"train": {}}]}


def with_steps(*steps: dict) -> dict:
    return {**MINIMAL, "steps": list(steps)}


@pytest.mark.parametrize("path", list_recipes().values(), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_fits_the_schema(path: Path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.fields.description
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())


def test_resolved_recipe_loads_to_itself():
    recipe = load_recipe(with_steps({"train": {"epochs": 2}}, {"quantize": {"scheme": "int8-dynamic"}}))
    again = load_recipe(yaml.safe_load(yaml.safe_dump(recipe.plain())))
    assert again.plain() == recipe.plain()
    assert again.sha256 == recipe.sha256


def test_seed_of_the_recipe_reaches_steps_that_set_none():
    recipe = load_recipe({**with_steps({"train": {}}, {"train": {"name": "b", "seed": 5}}), "seed": 3})
    assert [step.config.seed for step in recipe.steps] == [3, 5]
    assert load_recipe(yaml.safe_load(yaml.safe_dump(recipe.plain()))).steps == recipe.steps


DRAWING = {name: config for name, config in OPERATORS.items() if "seed" in config.model_fields and name != "hybrid"}


@pytest.mark.parametrize(
    "step",
    [
        *({"swap": {"attention": name}} for name in DRAWING),
        {"swap": {"attention": "hybrid", "variant": "scatterbrain"}},
        *({"quantize": {"scheme": scheme}} for scheme in SCHEMES),
    ],
    ids=lambda step: "-".join(map(str, next(iter(step.values())).values())),
)
def test_seed_of_the_recipe_reaches_operators_and_schemes(step):
    verb, fields = next(iter(step.items()))
    own = {verb: {**fields, "seed": 5, "name": "own"}}
    recipe = load_recipe({**with_steps(step, own), "seed": 3})
    assert [step.config.options.seed for step in recipe.steps] == [3, 5]
    assert [next(iter(step.plain.values()))["seed"] for step in recipe.steps] == [3, 5]
    assert load_recipe(yaml.safe_load(yaml.safe_dump(recipe.plain()))).steps == recipe.steps


def test_seed_of_the_recipe_reaches_the_sides_of_by_length():
    step = {"swap": {"attention": "by_length", "long": {"attention": "performer"}, "crossover": 64}}
    assert load_recipe({**with_steps(step), "seed": 3}).steps[0].config.options.long.seed == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"attention": "local"},
        {"attention": "hybrid", "variant": "lolcats"},
        {"attention": "block_sparse", "layout": [[0], [0, 1]]},
    ],
    ids=lambda fields: fields["attention"],
)
def test_an_operator_that_draws_nothing_gets_no_seed(fields):
    step = load_recipe({**with_steps({"swap": fields}), "seed": 3}).steps[0]
    assert "seed" not in step.values
    assert not getattr(step.config.options, "seed", None)


@pytest.mark.parametrize(
    ("assignment", "read", "expected"),
    [
        ("seed=4", lambda r: r.fields.seed, 4),
        ("evaluate.limit=10", lambda r: r.fields.evaluate.limit, 10),
        ("train.epochs=7", lambda r: r.steps[0].config.epochs, 7),
        ("second.epochs=7", lambda r: r.steps[1].config.epochs, 7),
        ("steps.1.distill.epochs=7", lambda r: r.steps[1].config.epochs, 7),
        ("model.base.hidden_size=32", lambda r: r.fields.model["base"]["hidden_size"], 32),
    ],
)
def test_set(assignment, read, expected):
    values = with_steps({"train": None}, {"distill": {"name": "second", "student": "layers=1"}})
    assert read(load_recipe(values, [assignment])) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({**MINIMAL, "sed": 1}, "did you mean 'seed'", id="top-level-key"),
        pytest.param(with_steps({"trian": {}}), "did you mean 'train'", id="verb"),
        pytest.param(with_steps({"train": {"epoch": 1}}), "did you mean 'epochs'", id="step-key"),
        pytest.param(with_steps({"train": {"epochs": -1}}), "greater than 0", id="step-value"),
        pytest.param(with_steps({"quantize": {"scheme": "int9"}}), "int8-dynamic", id="scheme"),
        pytest.param(with_steps({"quantize": {"embedings": True}}), "did you mean 'embeddings'", id="scheme-key"),
        pytest.param(with_steps({"train": {}, "prune": {}}), "one verb", id="two-verbs"),
        pytest.param(with_steps({"train": {"name": "../x"}}), "letters, digits", id="name"),
        pytest.param({**MINIMAL, "steps": []}, "at least 1", id="no-steps"),
        pytest.param({key: value for key, value in MINIMAL.items() if key != "task"}, "task: is required", id="task"),
    ],
)
def test_bad_recipe_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        load_recipe(values)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs", "key=value"),
        ("trian.epochs=1", "did you mean 'train'"),
        ("steps.4.train.epochs=1", "from 0 to 0"),
        ("train=3", "names a step"),
        ("name.x=3", "plain value"),
    ],
)
def test_bad_assignment_is_refused(assignment, message):
    with pytest.raises(UsageError, match=message):
        load_recipe(MINIMAL, [assignment])


def test_same_verb_twice_must_be_told_apart():
    with pytest.raises(UsageError, match="2 steps"):
        load_recipe(with_steps({"train": {"name": "a"}}, {"train": {"name": "b"}}), ["train.epochs=1"])


def test_recipe_is_found_by_name_and_by_path():
    assert find_recipe("quickstart") == find_recipe("recipes/quickstart.yaml").resolve() or find_recipe("quickstart")
    with pytest.raises(UsageError, match="'quickstart'"):
        find_recipe("quickstrat")


def test_file_that_is_no_recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("a: [")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_recipe(file)
    file.write_text("- a")
    with pytest.raises(UsageError, match="holds no mapping"):
        load_recipe(file)


def test_layers_are_written_one_way_in_every_step():
    written = ("0-1,3", [0, 1, 3], ["0-1", 3])
    for layers in written:
        values = with_steps(
            {"swap": {"attention": "local", "layers": layers}},
            {"linearize": {"attention": "linear", "layers": layers}},
            {"prune": {"keep_layers": layers}},
            {"quantize": {"skip": layers}},
        )
        swap, linearized, pruned, quantized = (step.config for step in load_recipe(values).steps)
        named = (swap.layers, linearized.layers, pruned.keep_layers, quantized.options.skip)
        assert named == ((0, 1, 3),) * 4
    for step in ({"swap": {"attention": "local"}}, {"linearize": {}}, {"prune": {}}, {"quantize": {}}):
        ((verb, fields),) = step.items()
        name = {"prune": "keep_layers", "quantize": "skip"}.get(verb, "layers")
        with pytest.raises(UsageError, match="'3-1' runs backwards"):
            load_recipe(with_steps({verb: {**fields, name: "3-1"}}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (with_steps({"train": "epochs"}), r"step 1 \(train\): expected a mapping of its settings, received 'epochs'"),
        ({**MINIMAL, "model": {"base": 0.5}}, "model base: expected a mapping of its settings, received 0.5"),
    ],
)
def test_settings_are_a_mapping(values, message):
    with pytest.raises(UsageError, match=message):
        check_recipe(load_recipe(values))


@pytest.mark.parametrize("step", [{"swap": {"attention": ["local"]}}, {"quantize": {"scheme": {"name": "nf4"}}}])
def test_a_name_is_a_text(step):
    with pytest.raises(UsageError, match="unknown"):
        load_recipe(with_steps(step))
