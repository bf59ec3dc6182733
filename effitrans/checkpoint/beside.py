"""What lies beside the weights of the folder that a model came from and belongs to it: it goes along when it is saved.

The tokenizer or image processor, the generation settings, the modules of sentence-transformers, the licence. Nothing
that can run code goes along, nor reports on the source; what else there is stays behind and is named in the log.
"""

import logging
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from effitrans.checkpoint.folder import PICKLES
from effitrans.checkpoint.sentence import LENGTH, MODULES, PROMPTS, beside, sentence_modules
from effitrans.errors import CheckpointError, UsageError

logger = logging.getLogger(__name__)

_PROCESSOR = (
    *("*token*", "vocab*", "merges.txt", "*.model", "*.spm", "*.tiktoken", "tekken.json", "*.bpe"),
    *("*chat_template*", "*processor_config.json"),
)
"""Files of tokenizers and processors."""
_TOKENIZER = (
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
    *("preprocessor_config.json", "processor_config.json"),
)
"""Those of them that the hub is asked for."""
_GENERATION = "generation_config.json"
_LICENCE = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_CODE = (*PICKLES, ".py", ".pyc", ".so", ".safetensors")
_OF_THE_SOURCE = (
    CONFIG_NAME,
    "*.safetensors.index.json",
    "README*",
    "record.json",
    "step.json",
    "trainer_state.json",
    ".*",
)
"""Files that are written anew, or say something of the source alone."""


def source_folder(model: PreTrainedModel) -> Path | None:
    """The folder that a model was loaded from, of the hub's cache too; None if there is none (any more)."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    if not name:
        return None
    if Path(name).is_dir():
        return Path(name)
    revision = getattr(model.config, "_commit_hash", None)
    config = beside(name, CONFIG_NAME, revision)
    if config is None:
        return None
    # Loading a model fetches its weights alone.
    for file in (*_TOKENIZER, _GENERATION, PROMPTS, LENGTH):
        beside(name, file, revision)
    if (modules := beside(name, MODULES, revision)) is not None:
        for module in sentence_modules(modules):
            for file in (CONFIG_NAME, SAFE_WEIGHTS_NAME) if module.folder else ():
                beside(name, f"{module.folder}/{file}", revision)
    return config.parent


def carry(model: PreTrainedModel, folder: Path, processor: Any | None) -> None:
    """Copy what belongs to a model from its source into the folder it is saved to, before its weights are written.

    Args:
        model: the model to be saved.
        folder: where to.
        processor: the tokenizer or image processor that will be saved there; None: the source's goes along.

    Raises:
        UsageError: the source's tokenizer is not that of the model, whose vocabulary has changed since.
    """
    source = source_folder(model)
    config = _config_of(source)
    if source is not None and config is not None:
        same_tokens = _text(config, "vocab_size") == _text(model.config, "vocab_size")
        processors = [file for file in _files(source) if _matches(file, _PROCESSOR)]
        if processor is None and processors and not same_tokens:
            raise UsageError(
                f"the vocabulary has changed since the model was loaded ({_text(config, 'vocab_size')} tokens, now "
                f"{_text(model.config, 'vocab_size')}), so the tokenizer in {source} does not fit: pass "
                "processor=, the tokenizer that prune_vocabulary returned"
            )
        kept = [file for file in _files(source) if _matches(file, _LICENCE)]
        kept += processors if processor is None else []
        kept += [source / _GENERATION] if same_tokens and (source / _GENERATION).is_file() else []
        width, new_width = _text(config, "hidden_size"), _width(model, config)
        kept += _sentence_files(source, width == new_width)
        for file in kept:
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        if width != new_width:
            _mend_pooling(folder, width, new_width)
        used = {*kept, *processors, *(source / file.relative_to(source).parts[0] for file in kept)}
        if left := sorted(file.name for file in source.iterdir() if file not in used and _is_worth_naming(file)):
            logger.info("left in %s: %s", source, ", ".join(left))
    if processor is None and model.main_input_name == "input_ids" and not has_tokenizer(folder):
        logger.warning(
            "the model is saved without a tokenizer, for want of which a pipeline guesses one: pass processor= (%s)",
            "it came from no folder" if source is None else f"{source} has none",
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return (folder / "tokenizer_config.json").exists() or (folder / "tokenizer.json").exists()


def _config_of(source: Path | None) -> PreTrainedConfig | None:
    try:
        return None if source is None else AutoConfig.from_pretrained(source)
    except (OSError, ValueError):
        return None


def _text(config: PreTrainedConfig, name: str) -> Any:
    return getattr(config.get_text_config(), name, None)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix not in _CODE)


def _matches(file: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)


def _is_worth_naming(file: Path) -> bool:
    return file.suffix not in PICKLES and file.suffix != ".safetensors" and not _matches(file, _OF_THE_SOURCE)


def _width(model: PreTrainedModel, config: PreTrainedConfig) -> Any:
    """The width of the last hidden states, which pruning changes without the config; `config` is of the source."""
    embeddings = model.get_input_embeddings() if model.main_input_name == "input_ids" else None
    now, before = getattr(embeddings, "embedding_dim", None), _text(config, "embedding_size")
    same = now is None or now == (before or _text(config, "hidden_size"))
    return _text(model.config, "hidden_size") if same else now


def _sentence_files(source: Path, same_width: bool) -> list[Path]:
    """The files by which sentence-transformers loads a folder: all, or none where one of them cannot go along."""
    if not (source / MODULES).is_file():
        return []
    files = [file for file in (source / MODULES, source / PROMPTS) if file.is_file()]
    files += source.glob("sentence_*_config.json")
    try:
        for module in sentence_modules(source / MODULES):
            inside = sorted((source / module.folder).rglob("*")) if module.folder else []
            for file in inside:
                if file.is_file() and file.suffix not in (".json", ".txt", ".safetensors"):
                    raise CheckpointError(f"{file.relative_to(source)} is not a file that can go along")
                if file.suffix == ".safetensors" and not same_width:
                    raise CheckpointError(f"{module.kind} does not fit the model's new width")
            files += [file for file in inside if file.is_file()]
    except CheckpointError as error:
        logger.warning("the modules of sentence-transformers were left in %s: %s", source, error)
        return []
    return files


def _mend_pooling(folder: Path, old: int, new: int) -> None:
    """The width that a pooling names is the model's."""
    modules = sentence_modules(folder / MODULES) if (folder / MODULES).is_file() else []
    for file in (folder / module.folder / CONFIG_NAME for module in modules if module.kind == "Pooling"):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            file.write_text(re.sub(rf'(embedding_dimension": *){old}\b', rf"\g<1>{new}", text), encoding="utf-8")
