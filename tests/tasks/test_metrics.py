"""The built-in metrics against scikit-learn, scipy, sacrebleu and hand-made cases."""

import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from effitrans.errors import UsageError
from effitrans.tasks.metrics import METRICS, describe, metric
from effitrans.tasks.metrics.tagging import entities
from effitrans.tasks.metrics.text import longest_common_subsequence, normalize_answer

RNG = np.random.default_rng(0)
REFERENCES = RNG.integers(0, 2, 200)
PREDICTIONS = np.where(RNG.uniform(size=200) < 0.8, REFERENCES, 1 - REFERENCES)
REFERENCES4 = RNG.integers(0, 4, 300)
PREDICTIONS4 = np.where(RNG.uniform(size=300) < 0.7, REFERENCES4, RNG.integers(0, 4, 300))
LOGITS = RNG.normal(size=(200, 2)).astype(np.float32) + np.eye(2, dtype=np.float32)[REFERENCES]
LOGITS4 = RNG.normal(size=(300, 4)).astype(np.float32) + np.eye(4, dtype=np.float32)[REFERENCES4]
X = RNG.normal(size=150).round(1)
Y = (X + RNG.normal(size=150)).round(1)
TEXTS = ["the cat sat on the mat", "a quick brown fox", "nothing alike here"]
TARGETS = ["the cat is on the mat", "the quick brown fox jumps", "something else entirely"]


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def of_classes(name, predictions=PREDICTIONS, references=REFERENCES):
    return metric(name).compute(predictions=predictions, references=references)[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", sk.accuracy_score),
        ("f1", sk.f1_score),
        ("precision", sk.precision_score),
        ("recall", sk.recall_score),
        ("mcc", sk.matthews_corrcoef),
        ("f1_macro", lambda y, p: sk.f1_score(y, p, average="macro")),
    ],
)
def test_two_classes_equal_scikit_learn(name, expected):
    assert of_classes(name) == pytest.approx(expected(REFERENCES, PREDICTIONS))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", sk.accuracy_score),
        ("mcc", sk.matthews_corrcoef),
        ("f1_macro", lambda y, p: sk.f1_score(y, p, average="macro")),
    ],
)
def test_four_classes_equal_scikit_learn(name, expected):
    assert of_classes(name, PREDICTIONS4, REFERENCES4) == pytest.approx(expected(REFERENCES4, PREDICTIONS4))


@pytest.mark.parametrize("name", ["f1", "precision", "recall"])
def test_binary_metrics_refuse_more_classes(name):
    with pytest.raises(UsageError, match=r"two classes.*f1_macro"):
        of_classes(name, PREDICTIONS4, REFERENCES4)


@pytest.mark.parametrize("name", ["f1", "precision", "recall", "mcc"])
def test_without_any_positive_the_value_is_zero(name):
    assert of_classes(name, np.zeros(5, int), np.zeros(5, int)) == 0


def test_roc_auc_equals_scikit_learn():
    two = metric("roc_auc").compute(scores=LOGITS, references=REFERENCES)["roc_auc"]
    assert two == pytest.approx(sk.roc_auc_score(REFERENCES, LOGITS[:, 1] - LOGITS[:, 0]))
    four = metric("roc_auc").compute(scores=LOGITS4, references=REFERENCES4)["roc_auc"]
    assert four == pytest.approx(sk.roc_auc_score(REFERENCES4, softmax(LOGITS4), multi_class="ovr"))


def test_roc_auc_counts_ties_as_half():
    scores = np.array([[0, 1], [0, 1], [0, 0], [0, 2]], dtype=np.float32)
    labels = [0, 1, 0, 1]
    assert metric("roc_auc").compute(scores=scores, references=labels)["roc_auc"] == pytest.approx(
        sk.roc_auc_score(labels, scores[:, 1])
    )


def test_calibration_error_of_a_calibrated_and_an_overconfident_model():
    probability = np.random.default_rng(0).uniform(0.5, 1.0, 20_000)
    right = np.random.default_rng(1).uniform(size=20_000) < probability
    logits = np.stack([np.zeros(20_000), np.log(probability / (1 - probability))], axis=1)
    compute = metric("calibration_error").compute
    assert compute(scores=logits, references=right.astype(int))["calibration_error"] < 0.02
    wrong_half = np.arange(20_000) % 2
    assert compute(scores=np.tile([0.0, 50.0], (20_000, 1)), references=wrong_half)[
        "calibration_error"
    ] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pearson", lambda x, y: stats.pearsonr(x, y).statistic),
        ("spearman", lambda x, y: stats.spearmanr(x, y).statistic),
        ("mse", sk.mean_squared_error),
    ],
)
def test_numbers_equal_scipy(name, expected):
    assert metric(name).compute(predictions=X, references=Y)[name] == pytest.approx(expected(X, Y))


@pytest.mark.parametrize("name", ["spearman", "roc_auc"])
def test_resampled_ranks_equal_ranks_of_the_resampled_rows(name):
    built = metric(name)
    inputs = (X, Y) if name == "spearman" else (LOGITS[:150], REFERENCES[:150])
    statistics = built.statistics(*inputs)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 150, (5, 150))
    counts = np.stack([np.bincount(row, minlength=150) for row in rows]).astype(float)
    repeated = [built.point(statistics[row]) for row in rows]
    assert built.values(statistics, counts) == pytest.approx(repeated)
    left_out = built.jackknife(statistics)
    assert left_out[7] == pytest.approx(built.point(np.delete(statistics, 7, axis=0)))


def test_language_metrics_weigh_examples_by_their_tokens():
    losses, weights, sizes = [10.0, 40.0], [10.0, 20.0], [40, 80]
    assert metric("cross_entropy").compute(losses=losses, weights=weights)["cross_entropy"] == pytest.approx(50 / 30)
    assert metric("perplexity").compute(losses=losses, weights=weights)["perplexity"] == pytest.approx(np.exp(50 / 30))
    bits = metric("bits_per_byte").compute(losses=losses, bytes=sizes)["bits_per_byte"]
    assert bits == pytest.approx(50 / np.log(2) / 120)


@pytest.mark.parametrize(("name", "scorer"), [("bleu", "BLEU"), ("chrf", "CHRF")])
@pytest.mark.parametrize("several", [False, True], ids=["one-reference", "several-references"])
def test_translation_metrics_equal_sacrebleu(name, scorer, several):
    sacrebleu = pytest.importorskip("sacrebleu")
    built = metric(name)
    if several:
        references = [[TARGETS[0], TEXTS[0]], [TARGETS[1]], [TARGETS[2], "here nothing is alike"]]
        streams = [TARGETS, [TEXTS[0], None, "here nothing is alike"]]
    else:
        references, streams = TARGETS, [TARGETS]
    expected = getattr(sacrebleu.metrics, scorer)().corpus_score(TEXTS, streams).score
    assert built.compute(predictions=TEXTS, references=references)[name] == pytest.approx(expected)
    assert "version" in built.signature


def test_text_metrics_on_hand_made_cases():
    compute = {name: metric(name).compute for name in ("exact_match", "f1_span", "rouge_l")}
    assert compute["exact_match"](predictions=["The Cat!", "dog"], references=["cat", "cat"])["exact_match"] == 0.5
    one = compute["exact_match"](predictions=["dog"], references=[["cat", "dog"]])["exact_match"]
    assert one == 1.0
    # "big cat" against "cat sat": one word of two on either side.
    assert compute["f1_span"](predictions=["big cat"], references=["cat sat"])["f1_span"] == pytest.approx(0.5)
    assert compute["f1_span"](predictions=[""], references=[""])["f1_span"] == 1.0
    # LCS "the cat on the mat" has 5 words of 6 on either side.
    assert compute["rouge_l"](predictions=TEXTS[:1], references=TARGETS[:1])["rouge_l"] == pytest.approx(5 / 6)


def test_longest_common_subsequence_equals_the_table():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = (["abcd"[i] for i in rng.integers(0, 4, rng.integers(0, 12))] for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
        assert longest_common_subsequence(a, b) == table[-1, -1]


def test_answers_are_normalized_as_in_squad():
    assert normalize_answer("The  U.S.A., an Answer!") == "usa answer"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("B-X I-X E-X S-Y", [("X", 0, 3), ("Y", 3, 4)]),
        ("U-X B-X L-X O", [("X", 0, 1), ("X", 1, 3)]),
    ],
)
def test_entities_of_tags(tags, expected):
    assert list(entities(tags.split())) == expected


def test_tag_sequences():
    references = [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]
    predictions = [["B-PER", "I-PER", "O"], ["B-LOC", "O"]]
    assert metric("entity_f1").compute(predictions=predictions, references=references)["entity_f1"] == 0.5
    assert metric("accuracy").compute(predictions=predictions, references=references)["accuracy"] == 0.6
    flat = [[tag for row in rows for tag in row] for rows in (references, predictions)]
    assert metric("f1_macro").compute(predictions=predictions, references=references)["f1_macro"] == pytest.approx(
        sk.f1_score(*flat, average="macro")
    )


@pytest.mark.parametrize("name", METRICS)
def test_every_registered_metric_is_an_evaluate_module_that_says_what_it_is(name):
    built = metric(name)
    assert isinstance(built, evaluate.Metric)
    assert built.name == name
    assert METRICS[name].answers
    assert built.description
    assert describe(name).label


def test_rouge_l_keeps_letters_of_every_alphabet():
    rouge = metric("rouge_l")
    assert rouge.score("Ein naïver Satz", "ein naïver Satz") == 1
    assert rouge.score("η γάτα κοιμάται", "η γάτα τρώει") == pytest.approx(2 / 3)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'accuracy'"):
        metric("acuracy")


SCRIPT = """
import datasets
import evaluate

class HalfRight(evaluate.Metric):
    def _info(self):
        integer = datasets.Value("int64")
        return evaluate.MetricInfo(description="", citation="", inputs_description="",
                                   features=datasets.Features({"predictions": integer, "references": integer}))

    def _compute(self, predictions, references):
        return {"half_right": 0.5 * sum(p == r for p, r in zip(predictions, references)) / len(references)}
"""


@pytest.fixture
def script(tmp_path):
    script = tmp_path / "half_right" / "half_right.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    return script


@pytest.mark.parametrize("form", ["file", "folder", "relative-folder", "page-of-somebody"])
def test_the_script_of_a_metric_is_not_run_unless_asked(script, monkeypatch, form):
    monkeypatch.delenv("EFFITRANS_TRUST_REMOTE_CODE", raising=False)
    monkeypatch.chdir(script.parent.parent)
    monkeypatch.setattr(evaluate, "load", lambda *_, **__: pytest.fail("the script was run"))
    names = {"file": script, "folder": script.parent, "relative-folder": "half_right", "page-of-somebody": "you/metric"}
    with pytest.raises(UsageError, match="EFFITRANS_TRUST_REMOTE_CODE=1"):
        metric(f"evaluate:{names[form]}")


def test_a_metric_of_the_evaluate_library_from_a_script(script, monkeypatch):
    from effitrans.evaluation.statistics import bootstrap

    monkeypatch.setenv("EFFITRANS_TRUST_REMOTE_CODE", "1")
    built = metric(f"evaluate:{script}")
    statistics = built.statistics(PREDICTIONS, REFERENCES)
    assert built.point(statistics) == pytest.approx(0.5 * np.mean(PREDICTIONS == REFERENCES))
    low, high = bootstrap(built, statistics, seed=0, resamples=20)
    assert low < built.point(statistics) < high


def test_a_metric_of_the_hub_that_cannot_be_reached_says_so(monkeypatch):
    def refuse(*args, **kwargs):
        raise FileNotFoundError("Couldn't find a module script")

    monkeypatch.setattr(evaluate, "load", refuse)
    with pytest.raises(UsageError, match=r"evaluate:nothing.*network"):
        metric("evaluate:nothing")
