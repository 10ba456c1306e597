"""Check a request before torch is imported: names, paths, and code that is not trusted."""

from pathlib import Path

from gradscope.config import Data
from gradscope.data.names import check_data
from gradscope.errors import GradscopeError
from gradscope.measure.directory import require_room
from gradscope.measure.options import Request
from gradscope.measure.options.adaptive import Adaptive
from gradscope.models.references import check_reference, check_references, parse_reference


def refuse(request: Request, out: Path) -> None:
    """Raise :class:`GradscopeError` for every mistake in ``request`` that can be found without torch."""
    foreign, data = request.foreign, request.data
    roles = {name: role for role, names in request.options.others.items() for name in names if role != "epochs"}
    others = [name for name in roles if name not in request.models]
    check_references(
        [*request.models, *others],
        weights=foreign.weights,
        mean=foreign.mean,
        std=foreign.std,
        trust_code=foreign.trust_code,
        arguments={name: roles[name] for name in others},
    )
    if (code := getattr(request.options, "code", None)) is not None:
        check_reference(parse_reference(code, "attack"), None, trust_code=foreign.trust_code, argument="attack")
    for argument, text in request.options.codes if isinstance(request.options, Adaptive) else ():
        check_reference(parse_reference(text, argument), None, trust_code=foreign.trust_code, argument=argument)
    request.check()
    require_data_set(request)
    if data.dataset is not None:
        check_data(Data.parse(data.given()), download=data.download)
    require_room(out, request.options.kind, resume=request.where.resume, overwrite=request.where.overwrite)


def require_data_set(request: Request) -> None:
    """Raise :class:`GradscopeError` if a foreign model has no data set to be measured on."""
    for text in request.models:
        if request.data.dataset is None and parse_reference(text).is_foreign:
            raise GradscopeError(f"dataset must be given for the foreign model {text}, to measure it on")
