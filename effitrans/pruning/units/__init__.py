"""The pruning units: what can be removed. One file each, one line in `UNITS`; `base.py` says what a unit states."""

from effitrans.pruning.units.base import PruningUnit, RatioUnit, Unit
from effitrans.pruning.units.heads import Heads
from effitrans.pruning.units.hidden import Hidden
from effitrans.pruning.units.layers import Layers
from effitrans.pruning.units.neurons import Neurons
from effitrans.pruning.units.sublayers import AttentionLayers, FFNLayers
from effitrans.pruning.units.vocabulary import Vocabulary
from effitrans.pruning.units.whole import WholeUnit

UNITS: dict[str, Unit] = {
    "heads": Heads(),
    "ffn": Neurons(),
    "hidden": Hidden(),
    "attention_layers": AttentionLayers(),
    "ffn_layers": FFNLayers(),
    "layers": Layers(),
    "corpus": Vocabulary(),
}
"""Name -> unit. Of those that go as a whole the last ones are chosen first, as they hold the others."""

PRUNED = [unit for unit in UNITS.values() if isinstance(unit, PruningUnit)]
"""Those that `prune` removes; the vocabulary has a verb of its own."""
RATIO_UNITS = [unit for unit in PRUNED if isinstance(unit, RatioUnit)]
WHOLE_UNITS = [unit for unit in PRUNED if isinstance(unit, WholeUnit)]
