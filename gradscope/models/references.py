"""How a text names a model: a file, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory(...)``.

No torch here: the command line refuses mistakes with :func:`check_references`.
"""

import ast
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from gradscope.errors import GradscopeError

#: Libraries whose models are known by name.
LIBRARIES = ("torchvision", "timm")
#: A method of a class is told from a file's name by its call: ``package:Class.method()``.
_FACTORY = re.compile(r"({0}(?:\.{0})*):(?:({0}(?:\.{0})*)(?=\()|({0})$)".format(r"[^\W\d]\w*"))
_PREFIX = re.compile(r"(\w[\w.-]+):")


@dataclass(frozen=True)
class ModelRef:
    """What the text of a model says.

    ``module`` is the library of a ``library`` reference and the module of a ``factory``; ``name`` is looked up there,
    and a factory is called with ``arguments`` and ``options``. A ``file`` has none of these, nor a model in ``memory``.
    """

    text: str
    kind: Literal["file", "library", "factory", "memory"]
    module: str = ""
    name: str = ""
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_foreign(self) -> bool:
        """Whether it names somebody else's model."""
        return self.kind != "file"

    @property
    def short_name(self) -> str:
        """The file's stem, or the name without module and arguments: for the name of a directory."""
        return self.name if self.is_foreign else Path(self.text).stem


def parse_reference(text: str, argument: str = "model") -> ModelRef:
    """What ``text`` names; a file that exists is always that file, and what has no other form is a file's path.

    The arguments of a factory must be literals; anything else raises :class:`GradscopeError`.
    """
    if _exists(text):
        return ModelRef(text, "file")
    library, colon, name = text.partition(":")
    if colon and library in LIBRARIES and "(" not in name:
        return ModelRef(text, "library", library, name)
    found = _FACTORY.match(text)
    if found is None:
        return ModelRef(text, "file")
    module, factory = found[1], found[2] or found[3]
    arguments, options = _literals(text, text[found.end() :], argument)
    return ModelRef(text, "factory", module, factory, arguments, options)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # a text too long for a path
        return False


def _literals(text: str, call: str, argument: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in ``call``, ``(...)`` or nothing."""
    try:
        node = ast.parse(f"f{call or '()'}", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        node = None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise GradscopeError(f"{argument} must be package.module:factory(...), one call, got {text}")
    names = [keyword.arg for keyword in node.keywords]
    if len(set(names)) < len(names):
        raise GradscopeError(f"{argument} must give each argument of a factory once, got {text}")
    values = []
    for part in (*node.args, *(keyword.value for keyword in node.keywords)):
        try:
            values.append(ast.literal_eval(part))
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise GradscopeError(
                f"{argument} must give a factory literals alone, such as 'x', 3, True or None, "
                f"got {ast.unparse(part)} in {text}"
            ) from None
    if None in names:
        raise GradscopeError(f"{argument} must give a factory its arguments one by one, got ** in {text}")
    count = len(node.args)
    return tuple(values[:count]), {str(name): value for name, value in zip(names, values[count:], strict=True)}


def check_references(
    texts: Sequence[str],
    *,
    weights: Sequence[Path] = (),
    mean: object = None,
    std: object = None,
    trust_code: bool = False,
) -> list[ModelRef]:
    """What each of ``texts`` names; every mistake that can be seen without loading raises :class:`GradscopeError`.

    ``weights`` has a file for each foreign model, in order, or none; without foreign models ``mean`` and ``std`` are
    refused. Nothing is imported but what lies above a factory's module.
    """
    references = [parse_reference(text) for text in texts]
    foreign = [reference for reference in references if reference.is_foreign]
    if weights and len(weights) != len(foreign):
        raise GradscopeError(
            f"weights must be one file for each foreign model, in order ({len(foreign)}), got {len(weights)}"
        )
    require_both(mean, std)
    if not foreign and mean is not None:
        raise GradscopeError(
            "mean must be left out, and `std`, where no model is foreign: our checkpoints have their own"
        )
    files = weights_in_order(references, weights)
    for reference, file in zip(references, files, strict=True):
        check_reference(reference, file, trust_code=trust_code)
    _require_distinct(references, files)
    return references


def require_both(mean: object, std: object) -> None:
    """Raise :class:`GradscopeError` where only one of the two is given."""
    if (mean is None) != (std is None):
        given, missing = ("std", "mean") if mean is None else ("mean", "std")
        raise GradscopeError(f"{missing} must be given with `{given}`, or both be left out; got None")


def weights_in_order(references: Sequence[ModelRef], weights: Sequence[Path]) -> list[Path | None]:
    """The file of weights of each reference; None for a file, and where none was given."""
    files = iter(weights)
    return [next(files, None) if reference.is_foreign else None for reference in references]


def check_reference(reference: ModelRef, weights: Path | None, *, trust_code: bool, argument: str = "model") -> None:
    """Raise :class:`GradscopeError` where files are missing, code is not trusted or its module is not there."""
    text = reference.text
    if reference.kind == "file":
        prefix = _PREFIX.match(text)
        if prefix is not None and not _exists(text):
            raise GradscopeError(
                f"{argument}: {text} has the unknown prefix {prefix[1]!r}; "
                f"known: {', '.join(LIBRARIES)}, package.module:factory"
            )
        first_bytes(Path(text), argument)
    elif reference.kind == "factory":
        require_trust(reference, trust_code, argument)
        _require_module(reference, argument)
    elif weights is None:
        raise GradscopeError(f"weights must be a file for {text}; random weights measure nothing")
    if weights is not None:
        first_bytes(weights, "weights")


def require_trust(reference: ModelRef, trust_code: bool, argument: str = "model") -> None:
    """Raise :class:`GradscopeError` unless the code of a factory may run."""
    if reference.kind != "factory" or trust_code:
        return
    known = LIBRARIES if reference.module not in LIBRARIES else ()
    close = get_close_matches(reference.module, known, n=1, cutoff=0.7)
    hint = f"did you mean {close[0]}:{reference.name}? " if close else ""
    raise GradscopeError(
        f"{argument}: {reference.text} runs the code of {reference.module}; {hint}pass `trust_code` if you trust it"
    )


def _require_module(reference: ModelRef, argument: str) -> None:
    """Raise :class:`GradscopeError` where the package of a factory is neither installed nor in this directory."""
    package = reference.module.partition(".")[0]
    if package in sys.modules:
        return
    with working_directory_importable():
        if find_spec(package) is None:
            raise GradscopeError(
                f"{argument}: {reference.text}: {reference.module} cannot be imported: "
                f"ModuleNotFoundError: No module named {package!r}"
            )


def _require_distinct(references: Sequence[ModelRef], files: Sequence[Path | None]) -> None:
    """The same model twice, however it is written, raises :class:`GradscopeError`."""
    seen = set()
    for reference, file in zip(references, files, strict=True):
        text = reference.text
        model = (text, file and file.resolve()) if reference.is_foreign else Path(text).resolve()
        if model in seen:
            raise GradscopeError(f"model must name each model once, got {text!r} again")
        seen.add(model)


def first_bytes(path: Path, argument: str) -> bytes:
    """The first bytes of a file; one that is missing, unreadable, a directory or empty raises GradscopeError."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise GradscopeError(f"{argument}: {path} cannot be read: {error.strerror}") from None
    if not head:
        raise GradscopeError(f"{argument}: {path} is truncated: it is empty")
    return head


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """As under ``python -m``, but not for longer: a ``random.py`` lying there would be imported by others too."""
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(directory)
