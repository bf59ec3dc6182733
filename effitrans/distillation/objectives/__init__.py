"""What a student can learn from a teacher. An objective is one file and one line in `OBJECTIVES`."""

from effitrans.distillation.objectives.base import Lesson, Objective
from effitrans.distillation.objectives.feature import Feature
from effitrans.distillation.objectives.response import Response

OBJECTIVES: dict[str, type[Objective]] = {
    "response": Response,
    "feature": Feature,
}
"""Name in `--objective` and in recipes -> class."""

__all__ = ["OBJECTIVES", "Feature", "Lesson", "Objective", "Response"]
