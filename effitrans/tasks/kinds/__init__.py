"""The kinds of task, one file each. A new kind is its file and one line here."""

from effitrans.tasks.kinds.base import Kind
from effitrans.tasks.kinds.causal_lm import CausalLM
from effitrans.tasks.kinds.embedding import Embedding
from effitrans.tasks.kinds.image_classification import ImageClassification
from effitrans.tasks.kinds.masked_lm import MaskedLM
from effitrans.tasks.kinds.question_answering import QuestionAnswering
from effitrans.tasks.kinds.regression import Regression
from effitrans.tasks.kinds.seq2seq_lm import Seq2SeqLM
from effitrans.tasks.kinds.sequence_classification import SequenceClassification
from effitrans.tasks.kinds.token_classification import TokenClassification

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        SequenceClassification(),
        Regression(),
        TokenClassification(),
        QuestionAnswering(),
        CausalLM(),
        MaskedLM(),
        Seq2SeqLM(),
        Embedding(),
        ImageClassification(),
    )
}
"""Name in a task's YAML -> the kind."""
