"""What a student can learn from a teacher. An objective is one file and one line in `OBJECTIVES`."""

from effitrans.distillation.objectives.attention import Attention
from effitrans.distillation.objectives.base import DistillationBatch, Objective, ObjectiveConfig
from effitrans.distillation.objectives.cosine import Cosine
from effitrans.distillation.objectives.dkd import DKD
from effitrans.distillation.objectives.embedding_layer import EmbeddingLayer
from effitrans.distillation.objectives.feature import Feature
from effitrans.distillation.objectives.feed_forward import FeedForward
from effitrans.distillation.objectives.logit_mse import LogitMSE
from effitrans.distillation.objectives.pkd import PKD
from effitrans.distillation.objectives.relation import Relation
from effitrans.distillation.objectives.response import Response
from effitrans.distillation.objectives.rkd import RKD
from effitrans.distillation.objectives.sentence_embedding import SentenceEmbedding

OBJECTIVES: dict[str, type[Objective]] = {
    "response": Response,
    "logit_mse": LogitMSE,
    "dkd": DKD,
    "sentence_embedding": SentenceEmbedding,
    "feature": Feature,
    "cosine": Cosine,
    "pkd": PKD,
    "embedding_layer": EmbeddingLayer,
    "feed_forward": FeedForward,
    "attention": Attention,
    "relation": Relation,
    "rkd": RKD,
}
"""Name in `--objective` and in recipes -> class."""

__all__ = ["OBJECTIVES", "DistillationBatch", "Feature", "Objective", "ObjectiveConfig", "Response"]
