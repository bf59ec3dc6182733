"""The versions of other packages that effitrans works with, read from what it declares itself (`pyproject.toml`).

The lower ends are the versions of `constraints-oldest.txt`, with which the tests pass (`make test-oldest`).
"""

from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from effitrans.errors import VersionError


def check_versions(extra: str = "") -> None:
    """Refuse installed packages outside the range that effitrans declares, without importing them.

    A package that is not installed is no matter of versions, and neither is effitrans from a folder that was never
    installed, which declares nothing.

    Args:
        extra: look at the packages of this extra too (`lora`, `search`, `export`, ...).

    Raises:
        VersionError: all packages that do not fit are named, with what would.
    """
    try:
        declared = metadata.requires("effitrans") or []
    except metadata.PackageNotFoundError:
        return
    wrong: dict[str, str] = {}
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        # A development build counts as the release that it leads to.
        if not requirement.specifier.contains(Version(installed).base_version):
            wrong[f"{requirement.name}{requirement.specifier}"] = f"{requirement.name} {installed}"
    if wrong:
        raise VersionError(
            f"installed: {', '.join(wrong.values())}; effitrans works with {', '.join(wrong)}: "
            f"pip install {' '.join(map(repr, wrong))}"
        )
