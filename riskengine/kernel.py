"""How every kernel is compiled: once, cached on disk, without the GIL, IEEE arithmetic as written.

numba drops a cached kernel when the file it stands in changes, but not when a kernel it has inlined does:
a new version of ours beside an old cache would compute with parts of both. `_Locator` mends that.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any, Final, ParamSpec, Protocol, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba._dynfunc import make_function
from numba.core import caching, cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering
from numba.extending import intrinsic

P = ParamSpec("P")
R = TypeVar("R")
Call = Callable[[], Any]  # of a kernel, with its arguments

PACKAGE = Path(__file__).parent
SIXTEEN: Final = 16  # numbers that `below` compares
IMPORT = re.compile(rf"^from ({PACKAGE.name}[\w.]*) import (\([^)]*\)|.*)$", re.MULTILINE)


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel with numba on first use; under NUMBA_DISABLE_JIT=1 it stays plain Python.

    It may make no arrays (see `jit_allocating`), so that nobody need count who holds them: numba counts at
    every call of one kernel by another, 312 times in the code of slabs.observe.
    """
    return _compiled(function)


def jit_inline(function: Callable[P, R]) -> Callable[P, R]:
    """`jit` for the innermost: where other kernels call it, it becomes a part of them.

    LLVM by itself leaves a call where the called is large; ten words of each array are pushed for it then.
    """
    return _compiled(function, forceinline=True)


def jit_allocating(function: Callable[P, R]) -> Callable[P, R]:
    """`jit` for a kernel that makes arrays."""
    return _compiled(function, _nrt=True)


class Holder(Protocol):
    """What makes a call of a kernel to be made later: `functools.partial`, or `bind`."""

    def __call__(self, kernel: Callable[..., R], /, *arguments: Any) -> Call:
        """The call."""


def bind(kernel: Callable[..., R], *arguments: Any) -> Call:
    """A call of a kernel with these very arguments, whose types are looked at now and then never again.

    That look takes 0.2 us a call and 0.03 us an argument: of the 32 us of a lone event it took 6.
    """
    dispatcher: Any = kernel
    if isinstance(kernel, FunctionType):
        return partial(kernel, *arguments)
    types_of = tuple(_plain(dispatcher.typeof_pyval(argument)) for argument in arguments)
    return partial(dispatcher.compile(types_of), *arguments)


def is_cached(kernel: Any) -> bool:
    """Whether a kernel, as it stands now, is in the cache on disk; True where nothing is compiled."""
    cache = getattr(kernel, "_cache", None)
    return cache is None or bool(cache._cache_file._load_index())


def _compiled(function: Callable[P, R], **special: bool) -> Callable[P, R]:
    njit: Any = numba.njit  # its types leave out some of its options
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False, "_nrt": False, **special}
    kernel = njit(cache=True, **options)(function)
    if isinstance(kernel, FunctionType):
        return cast(Callable[P, R], kernel)
    kernel._cache._cache_file.__class__ = _Files
    # What another kernel calls needs no entry for Python, no file and no machine code of its own, and one
    # version whichever constant stands in the call or integer is at hand (numba would make thirteen of
    # layout.entity_of): slabs.observe compiles in 10 s of CPU time instead of 29.
    part = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_PartPipeline, **options)(
        function
    )

    def template(args: Any, kws: Any) -> Any:
        plain = {name: _plain(given) for name, given in kws.items()}
        return part.get_call_template([_plain(given) for given in args], plain)

    kernel.get_call_template = template
    kernel.get_overload = part.get_overload
    return cast(Callable[P, R], kernel)


def _plain(given: Any) -> Any:
    """The type that a kernel takes for an argument of type `given`."""
    unliteral: Any = types.unliteral  # it has no types
    kind = unliteral(given)
    return types.int64 if kind in types.signed_domain else kind


def _pointer(array: Any, at: int) -> Any:
    """Where array[at] stands (in the order of its memory), as kernels hand arrays to each other.

    An array is seven words to every call, and numba asks of each index whether it counts from the end; this
    is one word, and an index is an offset. Of a pointer it is the one `at` further on.
    """
    return array.reshape(-1)[at:]


def _typed_pointer(typing: Any, array: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(_first(context, builder, signature, arguments), [arguments[1]])

    return _pointer_to(array.dtype)(array, types.int64), generate


def _viewed(array: Any, at: int, kind: Any) -> Any:
    """`pointer`, to the same memory as numbers of another kind, say np.float64.

    The view that numba makes of an array costs 60 ms to compile, each.
    """
    return array.reshape(-1)[at:].view(kind)


def _typed_viewed(typing: Any, array: Any, at: Any, kind: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(_first(context, builder, signature, arguments), [arguments[1]])
        return builder.bitcast(place, context.get_data_type(kind.dtype).as_pointer())

    return _pointer_to(kind.dtype)(array, types.int64, kind), generate


def _word_in(data: Any, at: int) -> int:
    """Eight bytes of an array of bytes from data[at] on as an int64, the lowest first, wherever they stand.

    Put together byte by byte they take ten times as long: LLVM does not see through the sign.
    """
    return int.from_bytes(data[at : at + 8].tobytes(), "little", signed=True)


def _typed_word_in(typing: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(_first(context, builder, signature, arguments), [arguments[1]])
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    return types.int64(data, types.int64), generate


def _set_word_in(data: Any, at: int, word: int) -> None:
    """Write an int64 as eight bytes, as `word_in` reads them."""
    data[at : at + 8] = np.frombuffer((int(word) & (1 << 64) - 1).to_bytes(8, "little"), np.uint8)


def _typed_set_word_in(typing: Any, data: Any, at: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(_first(context, builder, signature, arguments), [arguments[1]])
        builder.store(arguments[2], builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.int64), generate


def _constant(array: Any, at: int) -> int:
    """array[at] of whole numbers that nobody writes to while kernels run: one load may serve many."""
    value: int = array[at]
    return value


def _typed_constant(typing: Any, array: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(builder.gep(_first(context, builder, signature, arguments), [arguments[1]]))
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return loaded

    return array.dtype(array, types.int64), generate


def _stack(n: int) -> Any:
    """`n` (a constant) words that live as long as the call of a kernel, in no order yet."""
    return np.zeros(n, np.int64)


def _typed_stack(typing: Any, n: Any) -> Any:
    allocate: Any = cgutils.alloca_once  # it has no types

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        room = allocate(builder, ir.ArrayType(ir.IntType(64), n.literal_value))
        return builder.bitcast(room, ir.IntType(64).as_pointer())

    return _pointer_to(types.int64)(n), generate


def _prefetch(array: Any, at: int) -> None:
    """Ask for the cache line of array[at], of an array (contiguous) or pointer, which will be read soon."""


def _typed_prefetch(typing: Any, array: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = _first(context, builder, signature, arguments)
        place = builder.bitcast(builder.gep(first, [arguments[1]]), cgutils.voidptr_t)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            (cgutils.voidptr_t,),
            ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, *[ir.IntType(32)] * 3]),
        )
        reading, often, data = (ir.Constant(ir.IntType(32), value) for value in (0, 3, 1))
        builder.call(function, [place, reading, often, data])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


def _below(array: Any, at: int, x: float) -> int:
    """How many of SIXTEEN doubles from array[at] on, of an array (contiguous) or pointer, are less than x.

    They are compared side by side: numba makes sixteen comparisons of a loop, which take four times as long.
    """
    return int((array[at : at + SIXTEEN] < x).sum())


def _typed_below(typing: Any, array: Any, at: Any, x: Any) -> Any:
    vector, word = ir.VectorType(ir.DoubleType(), SIXTEEN), ir.IntType(64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.gep(_first(context, builder, signature, arguments), [arguments[1]])
        numbers = builder.load(builder.bitcast(place, vector.as_pointer()), align=8)
        index = ir.VectorType(ir.IntType(32), SIXTEEN)
        one = builder.insert_element(
            ir.Constant(vector, ir.Undefined), arguments[2], ir.Constant(ir.IntType(32), 0)
        )
        less = builder.fcmp_ordered("<", numbers, builder.shuffle_vector(one, one, ir.Constant(index, None)))
        return builder.zext(builder.ctpop(builder.bitcast(less, ir.IntType(SIXTEEN))), word)

    return types.int64(array, types.int64, types.float64), generate


def _pointer_to(kind: Any) -> Any:
    made: Any = types.CPointer  # it has no types
    return made(kind)


def _first(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Where the array, or pointer, that is the first argument begins."""
    if isinstance(signature.args[0], types.CPointer):
        return arguments[0]
    return context.make_array(signature.args[0])(context, builder, arguments[0]).data


def _intrinsic(plain: Callable[P, R], typed: Any, prefer_literal: bool = False) -> Callable[P, R]:
    """What kernels call: `typed` where they are compiled, `plain` where they stay Python."""
    settings: Any = numba.config  # its types leave out most of its settings
    made: Any = intrinsic(prefer_literal=prefer_literal)(typed)
    return plain if settings.DISABLE_JIT else cast(Callable[P, R], made)


pointer = _intrinsic(_pointer, _typed_pointer)
viewed = _intrinsic(_viewed, _typed_viewed)
constant = _intrinsic(_constant, _typed_constant)
stack = _intrinsic(_stack, _typed_stack, prefer_literal=True)
prefetch = _intrinsic(_prefetch, _typed_prefetch)
below = _intrinsic(_below, _typed_below)
word_in = _intrinsic(_word_in, _typed_word_in)
set_word_in = _intrinsic(_set_word_in, _typed_set_word_in)


class _PartCode(cast(Any, JITCodeLibrary)):  # type: ignore[misc]  # it has no types
    """The LLVM code of a part, just as it was lowered, for the kernels that take it in.

    LLVM optimises the whole of a kernel once, from the innermost outwards. numba would have it do so with
    every part by itself too, again with all that the part calls, and make machine code of each that is never
    run: with that, the kernels of a store take 23 s of CPU time instead of 14, and run no faster.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@cast(Any, register_pass)(mutates_CFG=True, analysis_only=False)
class _PartLowering(cast(Any, NativeLowering)):  # type: ignore[misc]  # it has no types
    """Lower a part, and enter it for the kernels that call it under a function that is no function."""

    _name = "part_lowering"

    def run_pass(self, state: Any) -> bool:
        name = state.func_id.func_name
        state["library"] = _PartCode(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered = state.cr
        module, kept = lowered.fndesc.lookup_module(), (state["library"],)
        entry = make_function(module, name, "", 0, lowered.env, kept)
        state.targetctx.insert_user_function(entry, lowered.fndesc, [state["library"]])
        state.cr = lowered._replace(cfunc=entry)
        return True


class _PartPipeline(cast(Any, CompilerBase)):  # type: ignore[misc]  # it has no types
    """numba's own way to compile, but for the last step."""

    def define_pipelines(self) -> list[Any]:
        builder: Any = DefaultPassBuilder  # it has no types
        manager = builder.define_nopython_pipeline(self.state)
        steps = manager.passes
        manager.passes = [(_PartLowering if step is NativeLowering else step, of) for step, of in steps]
        manager.finalize()
        return [manager]


class _Files(cast(Any, caching.IndexDataCacheFile)):  # type: ignore[misc]  # it has no types
    """A cache that takes a damaged file, such as a power cut leaves, for one that is not there."""

    def _load_index(self) -> Any:
        try:
            return super()._load_index()
        except Exception:  # whatever pickle makes of any bytes
            return {}

    def _load_data(self, name: str) -> Any:
        try:
            return super()._load_data(name)
        except Exception:
            return None


class _Locator(caching._CacheLocator):
    """Keeps compiled kernels in the user's cache folder, each good for one state of all it may inline."""

    def __init__(self, function: Any, file: str) -> None:
        self._file = Path(file)
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(
            cache_folder() / self._file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        )

    def get_source_stamp(self) -> str:
        return _stamp(self._file)

    def get_disambiguator(self) -> str:
        return f"{self._line}-{_stamp(PACKAGE)[:8]}"

    @classmethod
    def from_function(cls, function: Any, file: str) -> _Locator | None:
        return cls(function, file) if PACKAGE in Path(file).parents else None


@cache
def _stamp(file: Path) -> str:
    """A hash of a module of ours and of every module of ours that it imports, directly or not."""
    digest = hashlib.blake2b(digest_size=16)
    if file == PACKAGE:  # which checkout or installation this is: two of them share the user's folder
        digest.update(str(PACKAGE).encode())
        return digest.hexdigest()
    met: set[Path] = set()
    waiting = [file]
    while waiting:
        module = waiting.pop()
        if module not in met:
            met.add(module)
            waiting.extend(_imports(module))
    for module in sorted(met):
        digest.update(module.read_bytes())
    return digest.hexdigest()


@cache
def _imports(module: Path) -> tuple[Path, ...]:
    """Modules of ours that a module imports."""
    found: list[Path] = []
    for source, names in IMPORT.findall(module.read_text("utf-8")):
        base = PACKAGE.joinpath(*source.split(".")[1:])
        files = [base.with_suffix(".py"), *(base / f"{name}.py" for name in re.findall(r"\w+", names))]
        found.extend(file for file in files if file.is_file())
    return tuple(found)


@cache
def cache_folder() -> Path:
    """Where kernels are kept: the user's cache folder, or a temporary one where that cannot be written."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or (
            "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
        )
    folders = [
        Path(chosen or base).expanduser() / "riskengine",
        Path(tempfile.gettempdir()) / f"riskengine-{_user()}",
    ]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_own(folder):  # what is loaded from here is run: nobody else may have put it there
                continue
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="riskengine-"))


def _is_own(folder: Path) -> bool:
    if not hasattr(os, "getuid"):
        return True
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")


caching.CacheImpl._locator_classes.insert(0, _Locator)
