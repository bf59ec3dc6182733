"""The checkpoint that carries its own structure, so that plain `from_pretrained` rebuilds a compressed model."""

from effitrans.checkpoint.folder import find_model
from effitrans.checkpoint.load import (
    bytes_on_disk,
    load_config,
    load_model,
    load_processor,
    processor_beside,
    require_model,
)
from effitrans.checkpoint.manifest import MANIFEST_VERSION, Manifest
from effitrans.checkpoint.quantizer import EffitransQuantizer
from effitrans.checkpoint.record import history, manifest_of, record
from effitrans.checkpoint.save import save
from effitrans.checkpoint.sharing import refuse_unknown_sharing

__all__ = [
    "MANIFEST_VERSION",
    "EffitransQuantizer",
    "Manifest",
    "bytes_on_disk",
    "find_model",
    "history",
    "load_config",
    "load_model",
    "load_processor",
    "manifest_of",
    "processor_beside",
    "record",
    "refuse_unknown_sharing",
    "require_model",
    "save",
]
