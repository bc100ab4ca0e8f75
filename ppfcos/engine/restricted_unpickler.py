"""A restricted unpickler: it reads numbers, text, containers and arrays, and calls only functions of its own.

Neither the functions that a pickle names nor the arguments that it passes are trusted. Every allowed name
stands for a function below that checks its arguments. NumPy's own constructors never get values from the
file. Memory is charged to a budget, which the size of the file sets, before it is allocated.
"""

from __future__ import annotations

import math
import pickle
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, Callable, NamedTuple

import numpy as np

# Bytes that reading may allocate: this many times the size of the file, and a constant for small files.
MEMORY_PER_BYTE = 9
MEMORY_CONSTANT = 16 << 20
MAX_OPCODES = 5_000_000  # which take seconds; the checkpoint of a detector has some 100,000
MAX_DEPTH = 64  # of containers within containers
MAX_NUMBER = 1000  # characters of a number that is written as text, or bytes of a binary one
MAX_DIMENSIONS = 32  # NumPy's limit before 2.0
MAX_SIZE = 1 << 48  # of one dimension
MAX_ARGUMENTS = 16
# The hash of a number is not secret, so that keys can be made to collide. Text has a random hash.
MAX_KEYS_NOT_TEXT = 20_000

# Upper bounds of what CPython allocates, in bytes.
OPCODE_COST = 24  # a place on the stack, and a small object
CONTAINER_COST = 240
ENTRY_COST = 160  # of a dictionary or a set
OBJECT_COST = 400
ARRAY_COST = 1500  # an array, the view it was made from, their shapes

NUMERIC_DTYPES = frozenset(  # as NumPy pickles them
    ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
)
PLAIN_OPCODES = (
    *("PROTO", "NONE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "SHORT_BINBYTES", "UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE"),
    *("EMPTY_TUPLE", "POP", "POP_MARK", "DUP", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL"),
    *("PERSID", "BINPERSID"),
)
_PLAIN_KEYS = (int, float, bool, type(None), bytes)


class UnsafePickleError(Exception):
    """A pickle asks for something that is not allowed."""


class Placeholder:
    """Stands for an object that is not needed. It ignores whatever it is given."""

    __slots__ = ()


class Function(NamedTuple):
    """Replaces a callable that a pickle names; `call` gets the unpickler and the unchecked arguments."""

    call: Callable[..., Any]


class Name(NamedTuple):
    """Replaces a name that is only passed as an argument, such as a class."""

    value: Any


PLACEHOLDER = Function(lambda unpickler, *_: Placeholder())


class _Dtype:
    """A numeric dtype; the pickle sets the byte order afterwards."""

    __slots__ = ("_order", "_text")

    def __init__(self, text: str):
        self._text, self._order = text, "="

    def set_state(self, state: Any) -> None:
        # (version, byte order, subdtype, names, fields, item size, alignment, flags)
        if type(state) is not tuple or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("a dtype with fields")
        if type(state[1]) is not str or state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("a dtype without byte order")
        self._order = state[1]

    @property
    def value(self) -> np.dtype:
        return np.dtype(self._text).newbyteorder(self._order)


class _UnfinishedArray:
    """An array whose state the pickle has not set yet."""

    __slots__ = ("memo_keys",)

    def __init__(self) -> None:
        self.memo_keys: list[int] = []


class Memory:
    """Budget of bytes that reading a file of `size` bytes may allocate."""

    def __init__(self, size: int):
        self.left = MEMORY_PER_BYTE * size + MEMORY_CONSTANT

    def charge(self, count: int) -> None:
        """Charge an allocation; raise an UnpicklingError if a file of this size cannot need it."""
        self.left -= count
        if self.left < 0:
            raise pickle.UnpicklingError("it takes more memory than its size explains")


class RestrictedUnpickler(pickle._Unpickler):
    """Reads one pickle after another from a file.

    Args:
        file: to read from, at its current position.
        size: bytes that may be read; also sets the memory budget.
        names: allowed names, by module and name; default: NUMPY_NAMES.
        memory: rest of the budget, if the file has used a part of it.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        names: Mapping[tuple[str, str], Function | Name] | None = None,
        memory: Memory | None = None,
    ):
        super().__init__(file, encoding="latin1")
        self._file, self._left = file, size
        self._names = NUMPY_NAMES if names is None else names
        self.memory = Memory(size) if memory is None else memory
        self.longest_line = sys.maxsize

    def load(self) -> Any:
        """Read one pickle of numbers, text, arrays, and containers of these, without cycles.

        Raises:
            UnsafePickleError: the pickle uses a name that is not allowed.
            Exception: of any class, if the pickle is damaged or takes too much memory.
        """
        self.memo: dict[int, Any] = {}
        self.metastack: list[list] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        self.proto = 0
        self._keys_not_text = 0
        handlers, charge = _HANDLERS, self.memory.charge
        for _ in range(MAX_OPCODES):
            opcode = self.read(1)[0]
            if opcode == pickle.STOP[0]:
                value = self.stack.pop()
                if type(value) in _CONTAINERS:
                    _height(value, {})
                return value
            handler, cost = handlers.get(opcode, (None, 0))
            if handler is None:
                raise pickle.UnpicklingError(f"opcode {opcode:#04x}")
            charge(cost)
            handler(self)
        raise pickle.UnpicklingError(f"more than {MAX_OPCODES} opcodes")

    # Reading bytes --------------------------------------------------------------------------------------

    def read(self, count: int) -> bytes:
        """Read so many bytes, all of them."""
        if not 0 <= count <= self._left:
            raise pickle.UnpicklingError("the file is cut off")
        self.memory.charge(4 * count)  # text of one byte a character may take four in memory
        self._left -= count
        data = self._file.read(count)
        if len(data) != count:
            raise pickle.UnpicklingError("the file is cut off")
        return data

    def readline(self) -> bytes:
        """Read to the end of the line, which must be there."""
        line = self._file.readline(min(self.longest_line, self._left))
        self._left -= len(line)
        self.memory.charge(4 * len(line))
        if line[-1:] != b"\n":
            raise pickle.UnpicklingError("a line that is cut off or too long")
        return line

    def read_buffer(self, count: int) -> bytearray:
        """Read into memory that arrays can be written to, without a copy."""
        if not 0 <= count <= self._left:
            raise pickle.UnpicklingError("the file is cut off")
        self.memory.charge(count)
        self._left -= count
        buffer = bytearray(count)
        if self._file.readinto(buffer) != count:
            raise pickle.UnpicklingError("the file is cut off")
        return buffer

    # Opcodes --------------------------------------------------------------------------------------------

    def find_class(self, module: str, name: str) -> Function | Name:
        """Return the replacement of a name; raise an UnsafePickleError if it is not allowed."""
        try:
            return self._names[module, name]
        except KeyError:
            raise UnsafePickleError(f"{ascii(module[:60])[1:-1]}.{ascii(name[:60])[1:-1]}") from None

    def _load_long4(self) -> None:
        (count,) = struct.unpack("<i", self.read(4))
        if not 0 <= count <= MAX_NUMBER:
            raise pickle.UnpicklingError("a number that is too long")
        self.append(pickle.decode_long(self.read(count)))

    def _load_frame(self) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        if count > self._left:
            raise pickle.UnpicklingError("the file is cut off")

    def _load_binbytes(self) -> None:
        self.append(self.read_buffer(*struct.unpack("<I", self.read(4))))

    def _load_binbytes8(self) -> None:
        self.append(self.read_buffer(*struct.unpack("<Q", self.read(8))))

    def _remember(self, key: int) -> None:
        value = self.stack[-1]
        if type(value) is _UnfinishedArray:
            value.memo_keys.append(key)
        self.memo[key] = value

    def _load_put(self) -> None:
        self._remember(int(self.readline()[:-1]))

    def _load_binput(self) -> None:
        self._remember(self.read(1)[0])

    def _load_long_binput(self) -> None:
        self._remember(*struct.unpack("<I", self.read(4)))

    def _load_memoize(self) -> None:
        self._remember(len(self.memo))

    def check_keys(self, keys: Iterable[Any]) -> None:
        """Reject keys that are slow to compare or to hash; deep tuples would crash the interpreter."""
        for key in keys:
            if type(key) is str:
                continue
            parts = key if type(key) is tuple and len(key) <= MAX_ARGUMENTS else (key,)
            for part in parts:
                if type(part) not in _KEYS and not isinstance(part, np.generic):
                    raise pickle.UnpicklingError(f"a {type(part).__name__} as a key")
            self._keys_not_text += 1
        if self._keys_not_text > MAX_KEYS_NOT_TEXT:
            raise pickle.UnpicklingError(f"more than {MAX_KEYS_NOT_TEXT} keys that are not text")

    def make_dict(self, keys: list, values: list) -> dict:
        """A dictionary of checked keys."""
        if len(keys) != len(values):
            raise pickle.UnpicklingError("a key without value")
        self.check_keys(keys)
        self.memory.charge(CONTAINER_COST + ENTRY_COST * len(keys))
        return dict(zip(keys, values))

    def make_set(self, kind: type, items: list | tuple) -> set | frozenset:
        """A set of checked items."""
        self.check_keys(items)
        self.memory.charge(CONTAINER_COST + ENTRY_COST * len(items))
        return kind(items)

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append(self.make_dict(items[::2], items[1::2]))

    def _load_frozenset(self) -> None:
        self.append(self.make_set(frozenset, self.pop_mark()))

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            target.update(self.make_dict(items[::2], items[1::2]))
        elif type(target) is not Placeholder:
            raise UnsafePickleError(f"items in a {type(target).__name__}")

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _append_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Placeholder:
            raise UnsafePickleError(f"appending to a {type(target).__name__}")

    def _load_append(self) -> None:
        self._append_items([self.stack.pop()])

    def _load_appends(self) -> None:
        self._append_items(self.pop_mark())

    def _load_additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is set:
            target.update(self.make_set(set, items))
        elif type(target) is not Placeholder:
            raise UnsafePickleError(f"adding to a {type(target).__name__}")

    def _load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is _UnfinishedArray:
            array = _array_of_state(self, state)
            self.stack[-1] = array
            for key in target.memo_keys:
                if self.memo.get(key) is target:
                    self.memo[key] = array
        elif type(target) is _Dtype:
            target.set_state(state)
        elif type(target) not in (dict, Placeholder):  # whose attributes are not needed
            raise UnsafePickleError(f"the state of a {type(target).__name__}")

    def _call(self, function: Any, arguments: Any) -> Any:
        if type(function) is not Function:
            raise UnsafePickleError(f"a call of a {type(function).__name__}")
        if function is PLACEHOLDER:
            return Placeholder()
        if type(arguments) not in (tuple, list) or len(arguments) > MAX_ARGUMENTS:
            raise pickle.UnpicklingError("a call without plain arguments")
        return function.call(self, *arguments)

    def _load_reduce(self) -> None:  # and NEWOBJ
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(self._call(function, arguments))

    def _load_newobj_ex(self) -> None:
        del self.stack[-2:]  # only placeholders take them, and ignore them
        if self.stack.pop() is not PLACEHOLDER:
            raise UnsafePickleError("a call with keywords")
        self.append(Placeholder())

    def _load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        self.append(self._call(self.find_class(module, name), self.pop_mark()))

    def _load_obj(self) -> None:
        function, *arguments = self.pop_mark()
        self.append(self._call(function, arguments))


def _with_short_line(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """For numbers written as text: converting long ones takes quadratic time."""

    def load_short_line(unpickler: RestrictedUnpickler) -> None:
        unpickler.longest_line = MAX_NUMBER
        load(unpickler)
        unpickler.longest_line = sys.maxsize

    return load_short_line


def _handlers() -> dict[int, tuple[Callable[[Any], None], int]]:
    """Handler and memory cost of each opcode. All others are rejected: extensions and external buffers."""
    ours, base = RestrictedUnpickler, pickle._Unpickler
    handlers = {
        OPCODE_COST: {
            # These read from the file, and push, pop and repeat plain values.
            **{name: getattr(base, f"load_{name.lower()}") for name in PLAIN_OPCODES},
            "NEWTRUE": base.load_true,
            "NEWFALSE": base.load_false,
            "INT": _with_short_line(base.load_int),
            "LONG": _with_short_line(base.load_long),
            "LONG4": ours._load_long4,
            "FLOAT": _with_short_line(base.load_float),
            "GET": _with_short_line(base.load_get),
            "FRAME": ours._load_frame,
            "DICT": ours._load_dict,
            "SETITEM": ours._load_setitem,
            "SETITEMS": ours._load_setitems,
            "APPEND": ours._load_append,
            "APPENDS": ours._load_appends,
            "ADDITEMS": ours._load_additems,
            "BUILD": ours._load_build,
        },
        ENTRY_COST: {
            "PUT": _with_short_line(ours._load_put),
            "BINPUT": ours._load_binput,
            "LONG_BINPUT": ours._load_long_binput,
            "MEMOIZE": ours._load_memoize,
        },
        CONTAINER_COST: {
            "MARK": base.load_mark,
            "TUPLE": base.load_tuple,
            "TUPLE1": base.load_tuple1,
            "TUPLE2": base.load_tuple2,
            "TUPLE3": base.load_tuple3,
            "EMPTY_LIST": base.load_empty_list,
            "LIST": base.load_list,
            "EMPTY_DICT": base.load_empty_dictionary,
            "BINBYTES": ours._load_binbytes,
            "BINBYTES8": ours._load_binbytes8,
            "BYTEARRAY8": ours._load_binbytes8,
        },
        OBJECT_COST: {
            "EMPTY_SET": base.load_empty_set,
            "FROZENSET": ours._load_frozenset,
            "REDUCE": ours._load_reduce,
            "NEWOBJ": ours._load_reduce,
            "NEWOBJ_EX": ours._load_newobj_ex,
            "INST": ours._load_inst,
            "OBJ": ours._load_obj,
        },
    }
    return {
        getattr(pickle, name)[0]: (handler, cost)
        for cost, by_name in handlers.items()
        for name, handler in by_name.items()
    }


_HANDLERS = _handlers()
_KEYS = (*_PLAIN_KEYS, str, Placeholder, Function, Name)


def _height(value: Any, heights: dict[int, int], depth: int = 1) -> int:
    """Return the levels of nested containers; raise an UnpicklingError for too many, and for a cycle.

    Args:
        value: a container.
        heights: of the containers that were visited, by id; 0 while their parts are being visited.
        depth: of the value.
    """
    height = heights.get(id(value))
    if height is None and depth <= MAX_DEPTH:
        heights[id(value)] = 0
        parts = value.values() if type(value) is dict else value
        inner = [_height(part, heights, depth + 1) for part in parts if type(part) in _CONTAINERS and part]
        height = heights[id(value)] = 1 + max(inner, default=0)
    if not height or depth + height > MAX_DEPTH + 1:
        raise pickle.UnpicklingError(f"containers within themselves, or nested deeper than {MAX_DEPTH}")
    return height


_CONTAINERS = (dict, list, tuple)  # the keys of dictionaries and the items of sets were checked


# Replacements of NumPy's functions ----------------------------------------------------------------------


def checked_shape(shape: Any) -> tuple[int, ...]:
    """Return `shape`; raise an UnpicklingError unless it is a short tuple of non-negative integers."""
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS:
        raise pickle.UnpicklingError("an array with an invalid shape")
    if not all(type(size) is int and 0 <= size <= MAX_SIZE for size in shape):
        raise pickle.UnpicklingError("an array with an invalid shape")
    return shape


def array_of_bytes(memory: Memory, data: Any, dtype: np.dtype) -> np.ndarray:
    """Return a flat array in native byte order, which shares the memory of `data` if possible.

    Args:
        memory: is charged for copies.
        data: bytes of a whole number of items.
        dtype: numeric, in any byte order.
    """
    memory.charge(ARRAY_COST)
    if dtype.kind == "b":  # a byte that is neither 0 nor 1 is no bool
        memory.charge(len(data))
        return np.frombuffer(data, np.uint8) != 0
    array = np.frombuffer(data, dtype)
    if not dtype.isnative:
        memory.charge(array.nbytes)
        array = array.astype(dtype.newbyteorder("="))
    return array


def _array(unpickler: RestrictedUnpickler, data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if type(dtype) is not _Dtype:
        raise pickle.UnpicklingError("an array without dtype")
    if type(data) is str:  # how Python 2 pickled bytes
        unpickler.memory.charge(len(data))
        data = data.encode("latin1")
    if type(data) not in (bytes, bytearray):
        raise pickle.UnpicklingError("an array without bytes")
    shape, kind = checked_shape(shape), dtype.value
    if len(data) != math.prod(shape) * kind.itemsize:
        raise pickle.UnpicklingError("an array with too few or too many bytes")
    if type(data) is bytes:  # which cannot be written to
        unpickler.memory.charge(len(data))
        data = bytearray(data)
    return array_of_bytes(unpickler.memory, data, kind).reshape(shape, order=order)


def _reconstruct(unpickler: RestrictedUnpickler, kind: Any, shape: Any, typecode: Any) -> _UnfinishedArray:
    if kind is not NDARRAY:
        raise pickle.UnpicklingError("an array of an unknown class")
    return _UnfinishedArray()


def _array_of_state(unpickler: RestrictedUnpickler, state: Any) -> np.ndarray:
    if type(state) is not tuple or len(state) != 5:
        raise pickle.UnpicklingError("an array with an invalid state")
    _, shape, dtype, is_fortran, data = state
    if type(is_fortran) not in (bool, int):
        raise pickle.UnpicklingError("an array without order")
    return _array(unpickler, data, dtype, shape, "F" if is_fortran else "C")


def _array_of_buffer(
    unpickler: RestrictedUnpickler, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
) -> np.ndarray:
    """`numpy._core.numeric._frombuffer`; since NumPy 2.4, order "K" is "C" with transposed `axes`."""
    if type(order) is not str or order not in ("C", "F", "K"):
        raise pickle.UnpicklingError("an array without order")
    if order != "K":
        return _array(unpickler, data, dtype, shape, order)
    array = _array(unpickler, data, dtype, shape, "C")
    if axes is None:
        return array
    if type(axes) is not tuple or not all(type(axis) is int for axis in axes):
        raise pickle.UnpicklingError("an array with invalid axes")
    if sorted(axes) != list(range(array.ndim)):
        raise pickle.UnpicklingError("an array with invalid axes")
    return array.transpose(axes)


def _scalar(unpickler: RestrictedUnpickler, dtype: Any, data: Any) -> np.generic:
    return _array(unpickler, data, dtype, (), "C")[()]


def _dtype(unpickler: RestrictedUnpickler, text: Any, align: Any = False, copy: Any = False) -> _Dtype:
    if type(text) is not str or text not in NUMERIC_DTYPES:
        raise pickle.UnpicklingError("an array of something else than numbers")
    return _Dtype(text)


def _encode(unpickler: RestrictedUnpickler, text: Any, encoding: Any = "latin1") -> bytes | bytearray:
    """Old pickles hold bytes as text. The real `_codecs.encode` would take any codec there is."""
    if type(text) is not str or type(encoding) is not str:
        raise pickle.UnpicklingError("bytes that are no text")
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding[:20]!a}")
    unpickler.memory.charge(len(text))
    return bytearray(text, "latin1")


def _bytes(unpickler: RestrictedUnpickler) -> bytes:
    return b""  # only empty ones are pickled so


def _items(unpickler: RestrictedUnpickler, items: Any) -> list | tuple:
    if type(items) not in (list, tuple):
        raise pickle.UnpicklingError("a container that is made of something else")
    unpickler.memory.charge(CONTAINER_COST + 8 * len(items))
    return items


def _tuple(unpickler: RestrictedUnpickler, items: Any = ()) -> tuple:
    return tuple(_items(unpickler, items))


def _set(unpickler: RestrictedUnpickler, items: Any = ()) -> set | frozenset:
    return unpickler.make_set(set, _items(unpickler, items))


def _frozenset(unpickler: RestrictedUnpickler, items: Any = ()) -> set | frozenset:
    return unpickler.make_set(frozenset, _items(unpickler, items))


def _ordered_dict(unpickler: RestrictedUnpickler, pairs: Any = ()) -> dict:
    pairs = _items(unpickler, pairs)
    if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise pickle.UnpicklingError("a dictionary that is made of something else than pairs")
    return unpickler.make_dict([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def _counter(unpickler: RestrictedUnpickler, counts: Any = None) -> dict:
    counts = {} if counts is None else counts
    if type(counts) is not dict:
        raise pickle.UnpicklingError("counts that are no dictionary")
    return unpickler.make_dict(list(counts), list(counts.values()))


def _default_dict(unpickler: RestrictedUnpickler, factory: Any = None) -> dict:
    return {}


NDARRAY = Name("ndarray")

NUMPY_NAMES: dict[tuple[str, str], Function | Name] = {
    ("numpy", "dtype"): Function(_dtype),
    ("numpy", "ndarray"): NDARRAY,
    ("_codecs", "encode"): Function(_encode),
    ("collections", "OrderedDict"): Function(_ordered_dict),
    **{(module, "tuple"): Function(_tuple) for module in ("builtins", "__builtin__")},
    **{(module, "bytes"): Function(_bytes) for module in ("builtins", "__builtin__")},
    **{
        (f"numpy.{core}.multiarray", name): Function(function)
        for core in ("core", "_core")
        for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): Function(_array_of_buffer) for core in ("core", "_core")},
}
# Other names in checkpoints of other projects: containers and their arguments.
CONTAINER_NAMES: dict[tuple[str, str], Function | Name] = {
    ("collections", "Counter"): Function(_counter),
    ("collections", "defaultdict"): Function(_default_dict),
    **{
        (module, name): function
        for module in ("builtins", "__builtin__")
        for name, function in (
            ("set", Function(_set)),
            ("frozenset", Function(_frozenset)),
            ("getattr", PLACEHOLDER),  # names a method of a class, as mmengine's HistoryBuffer does
            *((name, PLACEHOLDER) for name in ("list", "dict", "int", "float", "str", "bool", "object")),
        )
    },
}
