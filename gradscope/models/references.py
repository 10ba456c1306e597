"""Parse the text that names a model: a file, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory(...)``.

Without torch, so that the command line can check texts quickly with :func:`check_references`.
"""

import ast
import importlib
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from gradscope.errors import GradscopeError
from gradscope.reading import open_file

#: Libraries whose models can be named.
LIBRARIES = ("torchvision", "timm")
#: The parentheses of its call distinguish a method of a class, ``package:Class.method()``, from a file's name.
_FACTORY = re.compile(r"({0}(?:\.{0})*):(?:({0}(?:\.{0})*)(?=\()|({0})$)".format(r"[^\W\d]\w*"))
_PREFIX = re.compile(r"(\w[\w.-]+):")
#: Code that can give a module names that its text does not spell.
_MAKES_NAMES = re.compile(
    r"import\s+\*|\b(?:__getattr__|__dict__|globals|locals|vars|setattr|exec|eval|modules|import_module)\b"
)
_ZIP_HEAD = b"PK\x03\x04"
#: The first byte of a file that ``torch.save`` wrote before torch 1.6.
PICKLE_HEAD = b"\x80"


@dataclass(frozen=True)
class ModelRef:
    """The parsed text that names a model.

    ``module`` is the library of a ``library`` reference and the module of a ``factory``; ``name`` is looked up there. A
    factory is called with ``arguments`` and ``options``. A ``file`` and a model in ``memory`` have none of these.
    """

    text: str
    kind: Literal["file", "library", "factory", "memory"]
    module: str = ""
    name: str = ""
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_foreign(self) -> bool:
        """Whether it names a model that gradscope did not train."""
        return self.kind != "file"

    @property
    def short_name(self) -> str:
        """The file's stem, or the name without module and arguments, for the name of a directory."""
        return self.name if self.is_foreign else Path(self.text).stem


def parse_reference(text: str, argument: str = "model") -> ModelRef:
    """Parse ``text``. An existing file is always that file; a text without another form is a file's path.

    Raises :class:`GradscopeError` if an argument of a factory is not a literal.

    >>> parse_reference("nets:small(w=8)")
    ModelRef(text='nets:small(w=8)', kind='factory', module='nets', name='small', arguments=(), options={'w': 8})
    """
    if _exists(text):
        return ModelRef(text, "file")
    library, colon, name = text.partition(":")
    if colon and library in LIBRARIES and "(" not in name:
        return ModelRef(text, "library", library, name)
    match = _FACTORY.match(text)
    if match is None:
        return ModelRef(text, "file")
    module, factory = match[1], match[2] or match[3]
    arguments, options = _literals(text, text[match.end() :], argument)
    return ModelRef(text, "factory", module, factory, arguments, options)


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # the text is too long for a path
        return False


def _literals(text: str, call: str, argument: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Parse the arguments in ``call``, which is ``(...)`` or empty."""
    try:
        node = ast.parse(f"f{call or '()'}", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        node = None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise GradscopeError(f"{argument} must be package.module:factory(...) with one call, got {text}")
    names = [keyword.arg for keyword in node.keywords]
    if len(set(names)) < len(names):
        raise GradscopeError(f"{argument} must give each argument of a factory once, got {text}")
    values = []
    for part in (*node.args, *(keyword.value for keyword in node.keywords)):
        try:
            values.append(ast.literal_eval(part))
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise GradscopeError(
                f"{argument} must give a factory only literals, such as 'x', 3, True or None, "
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
    arguments: Mapping[str, str] | None = None,
) -> list[ModelRef]:
    """Parse ``texts``; raises :class:`GradscopeError` for every mistake that can be found without loading a model.

    ``weights`` has one file for each foreign model, in order, or none. Without foreign models ``mean`` and ``std`` are
    refused. ``arguments`` maps a text to the argument that gave it, if that was not ``model``. Only the packages above
    a factory's module are imported.
    """
    references = [parse_reference(text) for text in texts]
    foreign = [reference for reference in references if reference.is_foreign]
    if weights and not foreign:
        raise GradscopeError("weights must be left out if no model is foreign: a checkpoint has its own")
    if weights and len(weights) != len(foreign):
        raise GradscopeError(
            f"weights must be one file for each foreign model, in order ({len(foreign)}), got {len(weights)}"
        )
    require_both(mean, std)
    if not foreign and mean is not None:
        raise GradscopeError(
            "mean must be left out, and `std`, if no model is foreign: gradscope's checkpoints have their own"
        )
    files = weights_in_order(references, weights)
    for reference, file in zip(references, files, strict=True):
        argument = (arguments or {}).get(reference.text, "model")
        check_reference(reference, file, trust_code=trust_code, argument=argument)
    _require_distinct(references, files)
    return references


def require_both(mean: object, std: object) -> None:
    """Raise :class:`GradscopeError` if only one of the two is given."""
    if (mean is None) != (std is None):
        given, missing = ("std", "mean") if mean is None else ("mean", "std")
        raise GradscopeError(f"{missing} must be given with `{given}`, or both be left out; got None")


def weights_in_order(references: Sequence[ModelRef], weights: Sequence[Path]) -> list[Path | None]:
    """Assign each reference its file of weights; None for a checkpoint, and if no weights were given."""
    files = iter(weights)
    return [next(files, None) if reference.is_foreign else None for reference in references]


def check_reference(reference: ModelRef, weights: Path | None, *, trust_code: bool, argument: str = "model") -> None:
    """Raise :class:`GradscopeError` if a file is missing, code is not trusted or its module does not exist."""
    text = reference.text
    if reference.kind == "file":
        prefix = _PREFIX.match(text)
        if prefix is not None and not _exists(text):
            raise GradscopeError(
                f"{argument}: the prefix of {text} must be {', '.join(LIBRARIES)} or the module of a "
                f"package.module:factory, got {prefix[1]!r}"
            )
        require_found(Path(text), argument)
        if Path(text).suffix == ".safetensors":
            first_bytes(Path(text), argument)
            raise no_checkpoint(Path(text), argument)
        require_tensors(Path(text), argument)
    elif reference.kind == "factory":
        require_trust(reference, trust_code, argument)
        _require_module(reference, argument)
    elif weights is None:
        raise GradscopeError(f"weights must be given for {text}, got none; random weights measure nothing")
    if weights is not None and weights.suffix == ".safetensors":
        require_safetensors(weights, "weights")
    elif weights is not None:
        require_tensors(weights, "weights")


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
    """Raise :class:`GradscopeError` if a factory's package cannot be found, or does not contain its name."""
    package = reference.module.partition(".")[0]
    if package in sys.modules:
        return
    spec = _spec(package)
    if spec is None:
        raise GradscopeError(
            f"{argument}: {reference.text}: {reference.module} cannot be imported: "
            f"ModuleNotFoundError: No module named {package!r}"
        )
    if package == reference.module and _lacks(spec.origin, reference.name.partition(".")[0]):
        raise GradscopeError(f"{argument}: {reference.text}: {reference.module} has no {reference.name}")


def _spec(package: str) -> ModuleSpec | None:
    """Find the place from which a package would be imported, without importing it."""
    with working_directory_importable():
        return find_spec(package)


def require_found(path: Path, argument: str) -> None:
    """Raise :class:`GradscopeError` if ``path`` is not a model's file but the name of a network or of code."""
    name = str(path).removesuffix(".py")
    is_code, exists = name != str(path), _exists(str(path))
    if not name.isidentifier() or (exists and not is_code and not path.is_dir()):
        return
    if name in sys.modules or getattr(_spec(name), "origin", None) is not None:
        hint = f"write {name}:FACTORY for a model that the code of {name} makes"
    elif exists or is_code:
        return
    else:
        hint = f"write torchvision:{name} for a model of torchvision, MODULE:FACTORY for one of your own module"
    raise GradscopeError(f"{argument} must be a file of a model, got {path}; {hint}")


def _lacks(source: str | None, name: str) -> bool:
    """Whether a module's text neither contains ``name`` nor makes names in another way; its code does not run."""
    try:
        text = Path(source or "").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # a built-in or compiled module
        return False
    return re.search(rf"\b{name}\b", text) is None and _MAKES_NAMES.search(text) is None


def _require_distinct(references: Sequence[ModelRef], files: Sequence[Path | None]) -> None:
    """Raise :class:`GradscopeError` if two references name the same model, however they are written."""
    seen = set()
    for reference, file in zip(references, files, strict=True):
        text = reference.text
        model = (text, file and file.resolve()) if reference.is_foreign else Path(text).resolve()
        if model in seen:
            raise GradscopeError(f"model must name each model once, got {text!r} again")
        seen.add(model)


def first_bytes(path: Path, argument: str) -> bytes:
    """Read a file's first bytes; raises GradscopeError if it is missing, unreadable, empty or not a regular file."""
    try:
        with open_file(path) as file:
            head = file.read(16)
    except OSError as error:
        raise GradscopeError(f"{argument}: {path} cannot be read: {error.strerror}") from None
    if not head:
        raise GradscopeError(f"{argument}: {path} is truncated: it is empty")
    return head


def require_tensors(path: Path, argument: str) -> None:
    """Raise :class:`GradscopeError` if a file's form shows that ``torch.save`` did not write it, or not completely."""
    head = first_bytes(path, argument)
    if head.startswith(PICKLE_HEAD):  # written by torch before 1.6
        return
    names: list[str] = []
    if _ZIP_HEAD.startswith(head[:4]):
        if not zipfile.is_zipfile(path):
            raise truncated(path, argument)
        # Any error: an undecodable name raises UnicodeDecodeError, an unknown version NotImplementedError.
        with suppress(Exception), zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        raise GradscopeError(
            f"{argument}: {path} was refused: it is TorchScript, and gradscope never runs code from a checkpoint"
        )
    if "data.pkl" not in names:
        raise no_tensors(path, argument)


def require_safetensors(path: Path, argument: str) -> None:
    """Raise :class:`GradscopeError` unless a file begins as safetensors: a length, then JSON of that length.

    The format has no checksums, so that a flipped bit in a weight is not detected.
    """
    head = first_bytes(path, argument)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or path.stat().st_size < 8 + length:
        raise GradscopeError(f"{argument}: {path} must be a whole safetensors file, got one that begins with {head!r}")


def truncated(path: Path, argument: str) -> GradscopeError:
    """Make the error for a file whose end is missing."""
    return GradscopeError(f"{argument}: {path} is truncated: its end is missing after {path.stat().st_size} bytes")


def no_tensors(path: Path, argument: str) -> GradscopeError:
    """Make the error for a file that ``torch.save`` did not write."""
    return GradscopeError(
        f"{argument}: {path} must be an undamaged file of tensors that torch.save wrote, "
        f"got one that begins with {first_bytes(path, argument)!r}"
    )


def no_checkpoint(path: Path, argument: str = "model") -> GradscopeError:
    """Make the error for a file of tensors that is not a gradscope checkpoint."""
    return GradscopeError(
        f"{argument}: {path} must be a gradscope checkpoint; pass other models as torchvision:NAME, timm:NAME or "
        f"package.module:factory with `weights` {path}"
    )


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Make the working directory importable inside, as ``python -m`` does.

    Not for longer, because other code would import a ``random.py`` in that directory, too.
    """
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(directory)
