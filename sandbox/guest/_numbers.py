"""Makes numpy count in 64 bits for the program, as it does outside. Runs inside the sandbox.

Addresses have 32 bits here, and so has numpy's default integer. Where the program calls numpy, integers that nobody
gave a type go in and come out with 64, and sums and products are made in 64. Libraries find numpy as they were compiled
for it: pandas and scipy rely on indexes that have the size of an address.

What operators of numpy's own do without any call, a mask times an int for one, stays as it is; see `NUMPY_DIFFERS`.
"""

import collections.abc
import functools
import gc
import inspect
import sys

import _runner

LIBRARIES = frozenset({"numpy", "pandas", "scipy", "sklearn"})
"""Packages that use numpy as it is: they have parts that were compiled for it."""

ARRAYS = frozenset((
    "A", "B", "a", "a1", "a2", "a_max", "a_min", "ar", "ar1", "ar2", "arr", "array", "arrays", "ary", "arys", "b",
    "c_or_r", "choices", "choicelist", "condition", "condlist", "default", "element", "elements", "fill_value",
    "fp", "indices", "keys", "m", "max", "min", "operands", "p", "prototype", "sample", "seq_of_zeros", "start",
    "start_or_stop", "step", "stop", "test_elements", "to_begin", "to_end", "tup", "u", "v", "val", "vals",
    "values", "varargs", "weights", "x", "x1", "x2", "xi", "xp", "y",
))  # fmt: skip
"""Parameters that take what numpy makes an array of, or several such."""

SEVERAL = frozenset({"arrays", "choices", "choicelist", "condlist", "keys", "tup"})
"""Parameters that take a sequence of arrays, each with a type of its own."""

TYPES = frozenset({"dtype", "arg1", "arg2", "from_", "to", "type1", "type2", "arrays_and_dtypes", "type"})
"""Parameters that take a type, where `int` means 64 bits."""

INDEXES = {
    ("repeat", "repeats"),
    ("choose", "a"),
    ("choose", "self"),
    ("put", "ind"),
    ("put", "indices"),
    ("reduceat", "indices"),
}
"""Functions and their parameters that take indexes in the size of an address only."""

CREATORS = frozenset({"array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray"})
"""Functions whose result tells the type of what they were given: nothing need be made of it before."""

REDUCTIONS = frozenset((
    "sum", "prod", "cumsum", "cumprod", "trace", "nansum", "nanprod", "nancumsum", "nancumprod", "cumulative_sum",
    "cumulative_prod",
))  # fmt: skip
"""Functions that add up or multiply the elements of their first argument."""

COUNTED = frozenset((
    "argmax", "argmin", "argsort", "argpartition", "nanargmax", "nanargmin", "nonzero", "flatnonzero", "argwhere",
    "searchsorted", "digitize", "lexsort", "bincount", "histogram", "histogram2d", "histogramdd", "count_nonzero",
    "unravel_index", "ravel_multi_index",
))  # fmt: skip
"""Functions that give indexes or counts, whatever the type of what they were given."""

STORED = frozenset({"load", "from_dlpack"})
"""Functions whose result has the type of what was stored, whatever it is."""

METHODS = (
    "sum", "prod", "cumsum", "cumprod", "trace", "argmax", "argmin", "argsort", "argpartition", "nonzero",
    "searchsorted", "astype", "dot", "repeat", "choose", "put",
)  # fmt: skip
"""Methods of an array that take or give integers of the default type."""

DRAWS = (
    "choice", "permutation", "permuted", "binomial", "poisson", "geometric", "hypergeometric", "negative_binomial",
    "zipf", "logseries", "multinomial", "tomaxint",
)  # fmt: skip
"""Methods of the random generators that give integers of the default type."""

DRAWN = {"randint": int, "integers": None}
"""Methods of the random generators that take a type, and which they take where none is named; None: one of 64 bits."""

UFUNCS = (
    "add", "subtract", "multiply", "divmod", "floor_divide", "remainder", "mod", "fmod", "power", "pow", "negative",
    "positive", "absolute", "abs", "sign", "square", "conjugate", "conj", "maximum", "minimum", "fmax", "fmin",
    "left_shift", "right_shift", "bitwise_left_shift", "bitwise_right_shift", "bitwise_and", "bitwise_or",
    "bitwise_xor", "bitwise_not", "bitwise_invert", "invert", "gcd", "lcm", "matmul", "vecdot", "matvec", "vecmat",
    "str_len",
)  # fmt: skip
"""Element by element: those that give integers for integers."""

np = _array = _int32 = None
"""numpy, its own `array` and its type of 32 bits, once it has been imported."""


compiled = []
"""Functions of numpy's own compiled code that are at work: they have no frames, and rely on its types."""


def by_library(frame):
    """Tell whether it is a library that calls, not the program. `frame` is the newest that there is."""
    name = frame.f_globals.get("__name__", "")
    return bool(compiled) or (name != "__main__" and name.partition(".")[0] in LIBRARIES)


# ---- what goes in ------------------------------------------------------------------------------------------------


def typed(value):
    """Return a type as an argument names it, with 64 bits for `int`, in the fields of a record too."""
    if type(value) is list and all(type(one) is tuple and len(one) > 1 for one in value):
        return [(one[0], typed(one[1]), *one[2:]) for one in value]
    if type(value) is dict and type(value.get("formats")) in (list, tuple):
        return value | {"formats": [typed(one) for one in value["formats"]]}
    return np.int64 if value is int else value


def narrow(value):
    """Tell whether a value was given a type of 32 bits by somebody: an array, a buffer, or a list of such alone."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None:
        return getattr(dtype, "kind", "") in "iu" and dtype.itemsize == 4
    if isinstance(value, (list, tuple)):
        return bool(value) and all(hasattr(one, "dtype") or narrow(one) for one in value)
    return isinstance(value, collections.abc.Buffer) and not isinstance(value, (bytes, bytearray))


def widened(value):
    """Return what an array can be made of, as an array where it holds integers that nobody gave a type."""
    if not isinstance(value, (list, tuple, range)) or isinstance(first(value), (str, bytes)):
        return value
    try:
        made = _array(value)
    except (ValueError, TypeError):  # of different lengths, say: numpy is to tell
        return value
    return given(made, value) if made.dtype.kind in "biufc" else value


def first(value):
    """Return the first element of lists in lists, or None."""
    while isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return value


def several(value):
    """Return a sequence of what arrays can be made of, each widened."""
    return type(value)(map(widened, value)) if type(value) in (list, tuple) else widened(value)


def indexes(value):
    """Return indexes in the size of an address. One that is larger is beyond any array, and numpy says so."""
    value = widened(value)
    return value.astype(np.intp, casting="same_kind") if getattr(value, "dtype", None) == np.int64 else value


def number(value):
    """Return what a function of the program has given, with 64 bits where it is an int, or a tuple of such."""
    if type(value) is tuple:
        return tuple(map(number, value))
    return np.int64(value) if type(value) is int and -(2**63) <= value < 2**63 else value


# ---- what comes out ----------------------------------------------------------------------------------------------


def given(result, *sources):
    """Return a result with 64 bits where it has numpy's 32 and none of its sources had."""
    if isinstance(result, (tuple, list)):
        if not any(hasattr(one, "dtype") for one in result):
            return result
        parts = [given(one, *sources) for one in result]
        return result._make(parts) if hasattr(result, "_make") else type(result)(parts)
    kind = getattr(result, "dtype", None)
    if kind is _int32 and not any(map(narrow, sources)):
        return np.int64(result) if isinstance(result, np.generic) else result.astype(np.int64)
    return result


def sum_type(values):
    """Return the type in which numpy adds up these values outside, or None where it needs none."""
    if not isinstance(values, (np.ndarray, np.generic)) or values.dtype.kind not in "biu" or values.itemsize >= 8:
        return None
    return np.uint64 if values.dtype.kind == "u" else np.int64


# ---- functions ---------------------------------------------------------------------------------------------------


class Wide:
    """How a function's arguments are taken and its result is given."""

    def __init__(self, function, parameters, adds):
        self.name, self.adds = function.__name__, adds
        positional = [one for one in parameters if one.kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD]
        self.by_place = [self.taker(one.name) for one in positional]
        rest = [one for one in parameters if one.kind is inspect.Parameter.VAR_POSITIONAL]
        self.rest = self.taker(rest[0].name) if rest else None
        self.by_name = {one.name: self.taker(one.name) for one in parameters}
        self.first = positional[0].name if positional else ""
        self.places = {one.name: place for place, one in enumerate(positional)}
        self.typed, self.counts = "dtype" in self.by_name, self.name in COUNTED
        self.default = any(one.name == "dtype" and one.default is int for one in parameters)

    def taker(self, name):
        if (self.name, name) in INDEXES:
            return indexes
        if name in SEVERAL:
            return several
        if name in ARRAYS and self.name not in CREATORS:
            return widened
        if name in ("func1d", "funclist"):
            return answering
        return typed if name in TYPES else None

    def value(self, name, args, kwargs):
        """Return what was given for a parameter, or None."""
        place = self.places.get(name, len(args))
        return args[place] if place < len(args) else kwargs.get(name)

    def call(self, function, args, kwargs):
        takers = [*self.by_place, *[self.rest] * (len(args) - len(self.by_place))]
        args = [value if take is None else take(value) for take, value in zip(takers, args, strict=False)]
        for name in kwargs:
            take = self.by_name.get(name)
            if take is not None:
                kwargs[name] = take(kwargs[name])
        if self.name == "where" and all(type(one) in (int, bool) for one in args[1:]):
            args[1:] = map(number, args[1:])
        if self.typed:
            dtype = self.value("dtype", args, kwargs)
            if dtype is None and (self.adds or self.default) and self.value("out", args, kwargs) is None:
                dtype = sum_type(self.value(self.first, args, kwargs)) if self.adds else np.int64
                place = self.places.get("dtype", len(args))
                if dtype is not None and place < len(args):
                    args[place] = dtype
                elif dtype is not None:
                    kwargs["dtype"] = dtype
            if dtype is not None:
                return function(*args, **kwargs)
        result = function(*args, **kwargs)
        if self.counts:
            return given(result)
        return given(result, *args, *kwargs.values())


def wide(function, adds=None):
    """Return a function that does the same and, where the program calls it, does so in 64 bits."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return function
    how = Wide(function, parameters, function.__name__ in REDUCTIONS if adds is None else adds)

    @functools.wraps(function)
    def called(*args, **kwargs):
        if by_library(sys._getframe(1)):
            return function(*args, **kwargs)
        return how.call(function, args, kwargs)

    return called


def answering(function):
    """Return a function of the program, or a list of such, that gives integers with 64 bits."""
    if isinstance(function, (list, tuple)):
        return [answering(one) for one in function]
    return (lambda *args, **kwargs: number(function(*args, **kwargs))) if callable(function) else function


class Ufunc:
    """A function of numpy's that works element by element, as the program uses it. It passes for the one it wraps."""

    def __init__(self, ufunc):
        self._ufunc = ufunc
        self.__name__, self.__doc__ = ufunc.__name__, ufunc.__doc__
        adds = ufunc.__name__ in ("add", "multiply")
        for name in ("reduce", "accumulate", "reduceat", "outer"):
            setattr(self, name, wide(getattr(ufunc, name), adds and name != "outer"))

    __class__ = property(lambda self: np.ufunc)  # noqa: ARG005

    def __call__(self, *args, **kwargs):
        if not by_library(sys._getframe(1)):
            count = self._ufunc.nin
            args = [*map(widened, args[:count]), *args[count:]]
            if all(isinstance(one, int) or getattr(one, "dtype", None) == np.bool for one in args[:count]):
                args[:count] = map(number, args[:count])
            if "dtype" in kwargs:
                kwargs["dtype"] = typed(kwargs["dtype"])
            return given(self._ufunc(*args, **kwargs), *args)
        return self._ufunc(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._ufunc, name)

    def __repr__(self):
        return repr(self._ufunc)

    def __eq__(self, other):
        return other is self or other is self._ufunc

    def __hash__(self):
        return hash(self._ufunc)

    def __reduce__(self):
        return named, (self.__name__,)


def named(name):
    """Return what numpy has by this name."""
    return getattr(np, name)


# ---- methods ------------------------------------------------------------------------------------------------------


def replace(kind, names, make=wide):
    """Put functions in the place of a compiled type's methods."""
    methods = gc.get_referents(kind.__dict__)[0]
    for name in names:
        if name in methods:
            methods[name] = make(methods[name])


def retyped(method):
    """Return the method that takes a type, with 64 bits for `int`."""

    @functools.wraps(method)
    def made(self, *args, **kwargs):
        return method(self, *map(typed, args), **{name: typed(value) for name, value in kwargs.items()})

    return made


def drawing(draws):
    """Return a method of a random generator that gives 64 bits where no type is named."""

    @functools.wraps(draws)
    def drawn(self, *args, **kwargs):
        if by_library(sys._getframe(1)):
            return draws(self, *args, **kwargs)
        plain = False
        if draws.__name__ in DRAWN:
            dtype = args[3] if len(args) > 3 else kwargs.get("dtype", DRAWN[draws.__name__])
            plain = dtype is int
        if plain:
            args, kwargs["dtype"] = args[:3], np.int64
        compiled.append(draws)
        try:
            made = draws(self, *args, **kwargs)
        finally:
            compiled.pop()
        return int(made) if plain and isinstance(made, np.generic) else given(made, *args, *kwargs.values())

    return drawn


def of_slices(getitem):
    """Return the method that makes arrays of slices, with 64 bits where nothing else was said."""

    @functools.wraps(getitem)
    def made(self, key):
        return given(getitem(self, key), *(key if isinstance(key, tuple) else (key,)))

    return made


def of_first(method):
    """Return the method of a class that takes its first argument with 64 bits."""

    @functools.wraps(method)
    def made(self, first, *args, **kwargs):
        return given(method(self, typed(number(widened(first))), *args, **kwargs), first)

    return made


def of_function(vectorized):
    """Return the method that calls a function for each element, with 64 bits going in and coming out."""

    @functools.wraps(vectorized)
    def made(self, func, args):
        if self.otypes is not None:
            self.otypes = [np.int64 if one == np.int32 else one for one in map(np.dtype, self.otypes)]
        return vectorized(self, answering(func), [number(widened(one)) for one in args])

    return made


def counting(function):
    """Return a function of pandas that gives indexes, with 64 bits where the program calls it."""

    @functools.wraps(function)
    def called(*args, **kwargs):
        result = function(*args, **kwargs)
        return result if by_library(sys._getframe(1)) else given(result)

    return called


_runner.internal.add("<_numbers>")
