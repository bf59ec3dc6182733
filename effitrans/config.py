"""The base of every config: frozen, keyword-only, refusing unknown keys."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar, get_args

import pydantic

from effitrans.errors import UsageError, unknown_name

Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
"""A seed that every generator takes (NumPy's takes 32 bits)."""
Count = Annotated[int, pydantic.Field(ge=1, lt=10**9)]
"""A number of steps, examples or tokens: at least one, and fewer than a billion."""
Size = Annotated[int, pydantic.Field(ge=1, le=2**20)]
"""A number of positions or examples that are held in memory at once."""
Width = Annotated[int, pydantic.Field(ge=1, le=2**16)]
"""A number of features, landmarks or rows of a projection."""
Threads = Annotated[int, pydantic.Field(ge=1, le=1024)]
"""A number of CPU threads. Far more than a machine has crash the process."""
Epochs = Annotated[float, pydantic.Field(gt=0, lt=10**6)]
"""Passes over the training data."""
Rate = Annotated[float, pydantic.Field(gt=0)]
"""A learning rate."""
Dimension = Annotated[int, pydantic.Field(ge=0, le=2**40)]
"""A dimension of a tensor."""


class Config(pydantic.BaseModel):
    """Base of all configs. Subclasses document each field in the string literal beneath it.

    A field that is unknown or does not fit raises `UsageError` (a `ValueError`) with a remedy.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    verb: ClassVar[str] = ""
    """The verb that takes the config; empty for what is only a part of another one."""

    if not TYPE_CHECKING:  # which knows the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except pydantic.ValidationError as error:
                raise _refusal(type(self), error) from None

        __init__.__pydantic_base_init__ = True  # configs within configs are validated together with these

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Build the config from a mapping of plain values.

        Args:
            values: field names and values, as a YAML recipe or `--set` gives them.
            where: what is being read ("step 2 (prune)"), put in front of the message.

        Raises:
            UsageError: an unknown key (with the nearest valid one), or a value that does not fit.
        """
        prefix = f"{where}: " if where else ""
        if not isinstance(values, Mapping):
            raise UsageError(f"{prefix}expected names and their values, received {values!r:.80}")
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as error:
            raise _refusal(cls, error, prefix) from None

    def idle(self) -> dict[str, str]:
        """Settings that have no effect beside the others, and why ("without heads"); they keep their defaults.

        `seed` is never among them: a recipe gives its own to every step.
        """
        return {}

    @pydantic.model_validator(mode="after")
    def _refuse_idle(self) -> Self:
        for name, why in self.idle().items():
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name}={value!r} has no effect {why}: leave it out")
        return self

    def seeded(self, seed: int) -> Self:
        """The config with `seed` where its own was left to the default; its own goes to the configs that it holds too.

        A class whose `seed` has no effect beside some other setting overrides this.

        >>> class Draws(Config):
        ...     seed: int = 0
        >>> Draws().seeded(7).seed, Draws(seed=1).seeded(7).seed
        (7, 1)
        """
        update: dict[str, Any] = {}
        if "seed" in self.model_fields_set:
            seed = self.seed  # type: ignore[attr-defined]
        elif "seed" in type(self).model_fields:
            update["seed"] = seed
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Config) and (seeded := value.seeded(seed)) is not value:
                update[name] = seeded
        return self.model_copy(update=update) if update else self


C = TypeVar("C", bound=Config)


def as_config(
    value: Any,
    verb: str,
    kinds: type[C] | tuple[type[C], ...],
    example: str,
    *,
    default: C | None = None,
    named: Callable[[str], C] | None = None,
) -> C:
    """The config that a caller passed.

    Args:
        value: an instance of one of `kinds`; a name, where `named` makes configs of names; None, where there is a
            default.
        verb: whose argument it is. A config of another verb is refused, also if it has all of the fields.
        kinds: the classes.
        example: how one is written, for messages.
        default: for None.
        named: name -> config.

    Raises:
        UsageError: anything else, with what to write.
    """
    if value is None and default is not None:
        return default
    if isinstance(value, str) and named is not None:
        return named(value)
    if isinstance(value, kinds) and value.verb == verb:
        return value
    received = f"a {type(value).__name__}"
    if isinstance(value, type):
        received = f"the class {value.__name__}, which is to be called: {value.__name__}()"
    elif isinstance(value, Config) and value.verb:
        received += f", which is for {value.verb}"
    elif value is None or isinstance(value, str):
        received = repr(value)
    raise UsageError(f"{verb} takes a config such as {example}, received {received}")


def _refusal(cls: type[pydantic.BaseModel], error: pydantic.ValidationError, prefix: str = "") -> UsageError:
    return UsageError(prefix + "; ".join(_explain(cls, each) for each in error.errors()))


def _explain(cls: type[pydantic.BaseModel], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden" and (owner := _owner(cls, error["loc"][:-1])) is not None:
        where = f"{key.rpartition('.')[0]}: " if len(error["loc"]) > 1 else ""
        return where + str(unknown_name(f"{owner.__name__} key", str(error["loc"][-1]), owner.model_fields))
    if error["type"] == "missing":
        return f"{key or cls.__name__}: is required"
    message = error["msg"].removeprefix("Value error, ")
    says_it = error["type"] == "value_error" and (not key or (message.endswith(")") and "(received " in message))
    received = "" if says_it else f" (received {_short(error['input'])})"
    return f"{key}: {message}{received}" if key else f"{message}{received}"


def _owner(cls: type[pydantic.BaseModel], path: Sequence[Any]) -> type[pydantic.BaseModel] | None:
    """The config that lies at this path of fields; None where that is not one."""
    for part in path:
        field = cls.model_fields.get(part)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        configs = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)]
        if len(configs) != 1:
            return None
        (cls,) = configs
    return cls


def _short(value: Any, limit: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
