"""Which operator works in which family of models, as the page docs/attention.md.

    python -m tests.attention.matrix > docs/attention.md

The page says what each family asks for and each operator honours; `test_architectures` holds that what is said to
work does so all the way, and that the rest is refused.
"""

from effitrans.attention import OPERATORS, Site, find_sites
from effitrans.attention.operator import FEATURES
from tests.architectures.families import FAMILIES
from tests.attention.cases import CASES

HEAD = """# Attention operators in pretrained models

Written by `python -m tests.attention.matrix > docs/attention.md`; a test holds that it is current.

`yes`: the operator can be put into all self-attention layers with `swap_attention` or `effitrans swap`; the model
then runs forward and backward, is saved and reloaded bit-equal, and generates if the family does. A letter: the swap
is refused, with the reason below. Families whose names begin with `base` are effitrans's own Transformer.
"""


def page() -> str:
    """The page: a table of families and operators, and the reasons of refusals."""
    plain = Site(num_heads=4, num_key_value_heads=4, head_dim=8)
    honours = {name: CASES[name][0].build(plain).honours for name in sorted(OPERATORS)}
    letters: dict[str, str] = {}
    rows = [["model", *honours], ["---"] * (len(honours) + 1)]
    for family in FAMILIES:
        asked = {feature for found in find_sites(family.model()) if not found.site.cross for feature in found.asked}
        cells = []
        for known in honours.values():
            missing = sorted(asked - known)
            marks = [letters.setdefault(feature, "abcdefg"[len(letters)]) for feature in missing]
            cells.append(", ".join(marks) or "yes")
        rows.append([family.name, *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    reasons = "\n".join(f"- {letter}: the layers need {FEATURES[feature]}" for feature, letter in letters.items())
    return f"{HEAD}\n{table}\n\n{reasons}\n"


if __name__ == "__main__":
    print(page(), end="")
