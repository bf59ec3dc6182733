"""Help texts that name what a registry holds. A registry is imported when the help is shown, not before."""

from collections.abc import Callable, Mapping
from typing import Any

from typer.core import TyperCommand


def command_class(facts: Callable[[], Mapping[str, str]]) -> type[TyperCommand]:
    """A class for a command in whose help `{name}` stands for the fact of that name.

    Args:
        facts: gives the facts; called when the help is shown.
    """

    class Command(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            known = facts()
            for holder in (self, *self.params):
                for name, fact in known.items():
                    holder.help = (getattr(holder, "help", None) or "").replace(f"{{{name}}}", fact)  # type: ignore[union-attr]
            super().format_help(ctx, formatter)

    return Command
